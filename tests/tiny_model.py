"""A PocketDx model file of a few kilobytes, real in every way but its weights, which are random.

The graph is what ``pocketdx export`` makes: uint8 NHWC pixels of any size in, antialiased resize and normalising
inside, ``logits``, ``probabilities`` and ``embedding`` out, the manifest in the metadata. ``reference`` says in
NumPy and Pillow what it must answer. Needs onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pocketdx_runtime.manifest import Interval, Manifest, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EMBEDDING_SIZE = 8
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def tiny_model(
    labels: Sequence[str] = ("NORMAL", "PNEUMONIA"), size: int = 32, seed: int = 0, **manifest_overrides: Any
) -> bytes:
    """One valid model file.

    Args:
        labels: of the classes.
        size: side of the network's input in pixels.
        seed: of the weights; the same one gives the same bytes.
        manifest_overrides: fields of the manifest; ``temperature`` and ``outputs`` also change the graph.
    """
    return tiny_model_proto(labels, size, seed, **manifest_overrides).SerializeToString(deterministic=True)


def tiny_model_proto(
    labels: Sequence[str] = ("NORMAL", "PNEUMONIA"), size: int = 32, seed: int = 0, **manifest_overrides: Any
) -> onnx.ModelProto:
    """`tiny_model` before it is made bytes, for tests that break it."""
    manifest = tiny_manifest(labels, size, **manifest_overrides)
    proto = _proto(manifest, _weights(len(labels), seed))
    manifest.write_to(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def tiny_manifest(labels: Sequence[str] = ("NORMAL", "PNEUMONIA"), size: int = 32, **overrides: Any) -> Manifest:
    """What the tiny model says about itself."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "labels": tuple(labels),
        "architecture": "tiny",
        "embedding_size": EMBEDDING_SIZE,
        "preprocessing": Preprocessing(size, MEAN, STD),
        "metrics": {"test/auc": Interval(0.5, 0.4, 0.6)},
        "software": {"onnx": onnx.__version__},
        "created": "2025-01-31T12:00:00+00:00",
    }
    return Manifest(**{**fields, **overrides})


def reference(
    pixels: NDArray[np.uint8], labels: int = 2, size: int = 32, seed: int = 0, temperature: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    """What the tiny model must answer, computed without any ONNX code.

    Args:
        pixels: uint8 [H, W, 3].
        labels: how many classes.
        size: side of the network's input.
        seed: of the weights.
        temperature: of the manifest.

    Returns:
        float32 arrays by output name, for a batch of one.
    """
    from PIL import Image

    weights = _weights(labels, seed)
    channels = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(c.resize((size, size), Image.Resampling.BILINEAR)) for c in channels]
    x = (np.stack(resized).astype(np.float64) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    features = np.einsum("chwij,dcij->dhw", windows, weights["conv"]) + weights["bias"][:, None, None]
    pooled = np.maximum(features, 0).mean(axis=(1, 2))
    logits = pooled @ weights["classifier"]
    exponents = np.exp((logits - logits.max()) / temperature)
    answers = {
        "logits": logits,
        "probabilities": exponents / exponents.sum(),
        "embedding": pooled / np.linalg.norm(pooled),
    }
    return {name: value[np.newaxis].astype(np.float32) for name, value in answers.items()}


def _weights(classes: int, seed: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    shapes = {"conv": (EMBEDDING_SIZE, 3, 3, 3), "bias": (EMBEDDING_SIZE,), "classifier": (EMBEDDING_SIZE, classes)}
    return {name: random.normal(scale=0.5, size=shape).astype(np.float32) for name, shape in shapes.items()}


def _proto(manifest: Manifest, weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    spec = manifest.preprocessing
    per_channel = (1, 3, 1, 1)
    constants = {
        "size": np.array([spec.size, spec.size], np.int64),
        "scale": np.array(spec.scale, np.float32),
        "mean": np.array(spec.mean, np.float32).reshape(per_channel),
        "std": np.array(spec.std, np.float32).reshape(per_channel),
        "temperature": np.array(manifest.temperature, np.float32),
        **weights,
    }
    resize = {"mode": "linear", "antialias": 1, "exclude_outside": 1, "axes": [2, 3]}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["nchw", "", "", "size"], ["resized"], **resize),
        helper.make_node("Mul", ["resized", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["x"]),
        helper.make_node("Conv", ["x", "conv", "bias"], ["features"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
        helper.make_node("MatMul", ["vector", "classifier"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["calibrated"]),
        helper.make_node("Softmax", ["calibrated"], ["probabilities"], axis=1),
        helper.make_node("LpNormalization", ["vector"], ["embedding"], axis=1, p=2),
    ]
    columns = {"logits": len(manifest.labels), "probabilities": len(manifest.labels)}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns.get(name, manifest.embedding_size)])
        for name in manifest.outputs
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [image], outputs, initializers)
    # The oldest versions that have what is used here, so that every onnxruntime we support reads the file.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
