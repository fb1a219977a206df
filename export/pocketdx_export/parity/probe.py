"""Look inside an exported graph: the tensor that the network really gets."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from pocketdx_export.errors import ParityError
from pocketdx_runtime.manifest import Manifest

# A probe is itself a model file, so that whatever runs those runs it: one whose classes are the colour channels, and
# whose map of evidence, [N, C, h, w], is the network's input.
NETWORK_INPUT = "heatmap"
_CHANNELS = ("red", "green", "blue")
_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv"}
# What a quantizer puts between the preprocessing and the first convolution: it belongs to the numbers.
_STEPPED_OVER = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity"}


def write_probe(path: Path, manifest: Manifest, into: Path) -> Manifest:
    """Write a graph's preprocessing alone, as a model file that any backend of ONNX runs.

    Its only output is `NETWORK_INPUT`, float32 [N, 3, S, S]: what the first convolution gets.

    Args:
        path: an ONNX file whose input is uint8 [N, H, W, 3].
        manifest: of the file.
        into: the file to write.

    Returns:
        The manifest of the probe.

    Raises:
        ParityError: the graph has no convolution that its input reaches.
    """
    model = onnx.load(path)
    graph = model.graph
    tensor = first_convolution_input(graph, str(path))
    needed, nodes = {tensor}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    kept = [each for each in graph.initializer if each.name in needed]
    nodes.reverse()
    nodes.append(helper.make_node("Identity", [tensor], [NETWORK_INPUT]))
    output = helper.make_tensor_value_info(NETWORK_INPUT, onnx.TensorProto.FLOAT, ["N", 3, None, None])
    probe = helper.make_model(
        helper.make_graph(nodes, "probe", graph.input, [output], kept),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    # Nothing of the precision: files of one bundle whose preprocessing is the same give the same probe.
    own = Manifest(
        name="probe",
        labels=_CHANNELS,
        architecture=manifest.architecture,
        embedding_size=manifest.embedding_size,
        preprocessing=manifest.preprocessing,
        outputs=(NETWORK_INPUT,),
    )
    own.write_to(probe)
    into.write_bytes(probe.SerializeToString())
    return own


def first_convolution_input(graph: onnx.GraphProto, source: str) -> str:
    """Name of the float tensor that enters the first convolution downstream of the graph's input.

    Raises:
        ParityError: there is none.
    """
    reached = {graph.input[0].name}
    producer = {output: node for node in graph.node for output in node.output}
    for node in graph.node:  # in topological order, as ONNX demands
        if not reached.intersection(node.input):
            continue
        if node.op_type in _CONVOLUTIONS:
            tensor = str(node.input[0])
            while tensor in producer and producer[tensor].op_type in _STEPPED_OVER:
                tensor = str(producer[tensor].input[0])
            return tensor
        reached.update(node.output)
    raise ParityError(f"{source}: its input reaches no convolution; not a file that PocketDx exports")
