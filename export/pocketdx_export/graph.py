"""From the PyTorch module to one self-contained ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import onnx
import torch
from onnx import helper, numpy_helper

from pocketdx_export.deploy import OUTPUTS, DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_runtime.manifest import Manifest

# The oldest with an antialiased Resize; each later one shuts out runtimes that phones still have.
OPSET = 18


def to_onnx(module: DeployModule, manifest: Manifest) -> onnx.ModelProto:
    """Export `module`, tidy the graph, put the manifest in, and check the result.

    Args:
        module: in evaluation mode.
        manifest: what the file will say about itself.

    Returns:
        A checked model with the input `image`, uint8 [N, H, W, 3], all but the 3 free, and `OUTPUTS`.

    Raises:
        ExportError: the exporter or the checker refuses.
    """
    model = _exported(module)
    _pool_globally(model.graph)
    _forget_origin(model)
    model.producer_name, model.producer_version = "pocketdx", manifest.software.get("pocketdx", "")
    manifest.write_to(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ExportError(f"{manifest.name}: the exported graph is not valid ONNX ({problem})") from problem
    return model


def _exported(module: DeployModule) -> onnx.ModelProto:
    dims = torch.export.Dim
    shapes = {"image": {0: dims("N"), 1: dims("H"), 2: dims("W")}}
    # Sizes other than 1 and S: the exporter would take those for constants.
    example = torch.zeros(2, module.size + 6, module.size + 16, 3, dtype=torch.uint8)
    noise = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), torch.inference_mode(mode=False):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(OUTPUTS),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except Exception as problem:  # the exporter raises what it likes
            first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise ExportError(f"PyTorch cannot export this network: {first_line}") from problem
    assert program is not None
    return program.model_proto


def _pool_globally(graph: onnx.GraphProto) -> None:
    """ReduceMean over height and width is GlobalAveragePool, which onnxruntime runs in its blocked layout."""
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = sorted(int(axis) for axis in numpy_helper.to_array(constants[node.input[1]]).reshape(-1))
        keeps = helper.get_node_attr_value(node, "keepdims") if _has(node, "keepdims") else 1
        if axes in ([2, 3], [-2, -1]) and keeps:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    used = {name for node in graph.node for name in node.input}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)


def _has(node: onnx.NodeProto, attribute: str) -> bool:
    return any(each.name == attribute for each in node.attribute)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop stack traces: they hold paths of the exporting machine and are half of the graph's text."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    del graph.value_info[:]  # inferred again by whoever needs it
    for each in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del each.metadata_props[:]
        each.doc_string = ""


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
