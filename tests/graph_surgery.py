"""Change an exported graph: how tests break files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketdx_runtime.manifest import MANIFEST_KEY, Manifest


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def change(model: onnx.ModelProto, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of one initializer."""
    tensor = next(each for each in model.graph.initializer if each.name == name)
    values = new(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def insert_after(model: onnx.ModelProto, tensor: str, node: onnx.NodeProto) -> None:
    """Send all readers of `tensor` through `node`, which reads `tensor` and writes its own output."""
    for each in model.graph.node:
        for position, name in enumerate(each.input):
            if name == tensor:
                each.input[position] = node.output[0]
    node.input[0] = tensor
    producer = next(i for i, each in enumerate(model.graph.node) if tensor in each.output)
    model.graph.node.insert(producer + 1, node)


def change_manifest(model: onnx.ModelProto, **changes: object) -> None:
    text = next(each.value for each in model.metadata_props if each.key == MANIFEST_KEY)
    dataclasses.replace(Manifest.from_json(text), **changes).write_to(model)


def manifest_of(model: onnx.ModelProto) -> Manifest:
    return Manifest.from_json(next(each.value for each in model.metadata_props if each.key == MANIFEST_KEY))


def first_weight(model: onnx.ModelProto) -> str:
    return str(node_of(model, "Conv").input[1])


def replace_initializer(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == name)
    assert list(tensor.dims) == list(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
