"""Weights of a LiteRT file in 8 bits: rounded for the inputs that they meet, where those are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pocketdx_export.formats import tflite_weights
from pocketdx_export.formats.tflite_weights import Layer, with_int8_weights
from pocketdx_export.quantize.moments import Moments
from pocketdx_export.quantize.rounding import compensated

pytest.importorskip("litert_torch", reason="LiteRT's converter is not installed")
pytest.importorskip("ai_edge_quantizer", reason="LiteRT's quantizer is not installed")

INPUTS, OUTPUTS = 32, 64


def inputs(count: int, seed: int) -> Any:
    """float32 [count, INPUTS]: a few directions and a little noise, around a mean that is not 0."""
    directions = np.random.default_rng(0).normal(0, 1, (4, INPUTS))
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (count, 4)) @ directions + rng.normal(0, 0.05, (count, INPUTS)) + 2).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(INPUTS, OUTPUTS, 1)).eval()


@pytest.fixture(scope="module")
def float_file(network: torch.nn.Module) -> bytes:
    import litert_torch

    return bytes(litert_torch.convert(network, (torch.zeros(1, INPUTS, 1, 1),)).model_content())


@pytest.fixture(scope="module")
def layer(network: Any) -> Layer:
    seen = inputs(2000, seed=1).astype(np.float64)
    moments = Moments(seen.mean(0)[np.newaxis], np.cov(seen.T, bias=True)[np.newaxis], len(seen))
    return Layer(network[0].weight.detach().numpy(), moments)


def answers(content: bytes, given: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (entry,), (leave,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for each in given:
        interpreter.set_tensor(entry["index"], each.reshape(entry["shape"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(leave["index"]).reshape(-1))
    return np.stack(found)


def integers(content: bytes) -> list[tuple[Any, Any]]:
    """Values and scales of all int8 tensors."""
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    return [
        (np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8), np.array(tensor.quantization.scale))
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type == 9  # INT8
    ]


def error_of(content: bytes, exact: bytes) -> float:
    given = inputs(200, seed=2)
    return float(np.sqrt(((answers(content, given) - answers(exact, given)) ** 2).mean()))


def test_a_layer_whose_inputs_are_known_answers_more_nearly_and_is_right_in_the_mean(
    float_file: bytes, layer: Layer
) -> None:
    alone, known = with_int8_weights(float_file), with_int8_weights(float_file, [layer])
    assert error_of(known, float_file) < 0.5 * error_of(alone, float_file)
    given = inputs(500, seed=3)
    mean = (answers(known, given) - answers(float_file, given)).mean(0)
    assert np.abs(mean).max() < 0.3 * error_of(alone, float_file)
    assert len(known) == pytest.approx(len(alone), rel=0.02)


def test_the_file_holds_the_very_integers_and_scales_that_were_found(float_file: bytes, layer: Layer) -> None:
    expected = compensated(layer.weight, layer.moments.shrunk)
    ((values, scales),) = integers(with_int8_weights(float_file, [layer]))
    assert np.array_equal(values.reshape(OUTPUTS, INPUTS), expected.values[:, :, 0, 0])
    assert np.array_equal(scales.astype(np.float32), expected.scales)


def other_layers(layer: Layer) -> Sequence[Layer]:
    return [Layer(layer.weight + 0.01, layer.moments), Layer(layer.weight[:, :8], layer.moments)]


def test_another_layers_inputs_say_nothing_of_it(float_file: bytes, layer: Layer) -> None:
    assert with_int8_weights(float_file, other_layers(layer)) == with_int8_weights(float_file)


def test_a_weight_that_the_quantizer_leaves_is_not_taken_for_stored(
    float_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_all = tflite_weights._rounded_weights

    def and_one_more(*given: Any) -> Any:
        recipe, weights = round_all(*given)
        return recipe, {**weights, b"nowhere": next(iter(weights.values()))}

    monkeypatch.setattr(tflite_weights, "_rounded_weights", and_one_more)
    with pytest.raises(tflite_weights.ExportError, match="has not stored b'nowhere' in 8 bits"):
        with_int8_weights(float_file)
