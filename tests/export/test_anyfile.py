"""The gate for any PyTorch module and any ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from graph_surgery import change
from pocketdx_export.errors import ParityError
from pocketdx_export.parity import compare


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3), nn.SiLU()
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x).mean((2, 3))
        return self.head(features) * scale, features


INPUTS = (torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0)), torch.tensor(2.0))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    module = TwoHeads()
    for _ in range(5):  # batch norms that have seen something
        module(torch.rand(8, 3, 12, 10), torch.tensor(1.0))
    return module.eval()


@pytest.fixture
def exported(module: nn.Module, tmp_path: Path) -> Path:
    torch.onnx.export(module, INPUTS, tmp_path / "theirs.onnx", dynamo=True, external_data=False, verbose=False)
    return tmp_path / "theirs.onnx"


def test_an_honest_export_is_true_and_says_how_near_it_is(module: nn.Module, exported: Path) -> None:
    report = compare(module.train(), exported, INPUTS)
    assert module.training, "left as it was"
    module.eval()
    assert report, str(report)
    assert len(report.outputs) == 2
    assert all(each.max_difference < 1e-5 and each.sqnr > 100 and each.cosine > 0.999999 for each in report.outputs)
    assert report.jump is None


def weights(model: onnx.ModelProto, operator: str) -> list[str]:
    return [str(node.input[1]) for node in model.graph.node if node.op_type == operator]


@pytest.mark.parametrize("place", [0, 1])
def test_a_wrong_weight_is_false_and_the_first_wrong_node_is_named(
    module: nn.Module, exported: Path, place: int
) -> None:
    model = onnx.load(exported)
    change(model, weights(model, "Conv")[place], lambda values: values * 1.2)
    onnx.save(model, exported)
    report = compare(module, exported, INPUTS)
    assert not report
    assert report.jump is not None
    assert report.jump.operator == "Conv"
    broken = [node for node in model.graph.node if node.op_type == "Conv"][place]
    assert report.jump.tensor == broken.output[0]
    assert "body." in report.jump.against
    assert broken.output[0] in str(report)


def test_each_output_may_have_its_own_tolerance(module: nn.Module, exported: Path) -> None:
    model = onnx.load(exported)
    first, second = (each.name for each in model.graph.output)
    change(model, "head.bias", lambda values: values + 0.01)
    onnx.save(model, exported)
    assert compare(module, exported, INPUTS, {first: 0.1, second: 1e-5})
    report = compare(module, exported, INPUTS, {first: 1e-3, second: 1e-5})
    assert [bool(each) for each in report.outputs] == [False, True]
    with pytest.raises(ParityError, match="no tolerance for the output"):
        compare(module, exported, INPUTS, {first: 1e-3})


def test_answers_that_are_no_numbers_are_false(module: nn.Module, exported: Path) -> None:
    model = onnx.load(exported)
    change(model, "head.bias", lambda values: values * np.nan)
    onnx.save(model, exported)
    assert not compare(module, exported, INPUTS, float("inf"))


class TestBadInput:
    def test_a_file_that_is_no_model(self, module: nn.Module, tmp_path: Path) -> None:
        (tmp_path / "x.onnx").write_bytes(b"not a model")
        with pytest.raises(ParityError, match=r"x\.onnx: not an ONNX file"):
            compare(module, tmp_path / "x.onnx", INPUTS)

    def test_another_number_of_inputs(self, module: nn.Module, exported: Path) -> None:
        with pytest.raises(ParityError, match="takes 2 inputs"):
            compare(module, exported, INPUTS[0])

    def test_inputs_that_the_file_does_not_take(self, module: nn.Module, exported: Path) -> None:
        with pytest.raises(ParityError, match="cannot run on these inputs"):
            compare(module, exported, (torch.rand(2, 3, 20, 20), INPUTS[1]))
