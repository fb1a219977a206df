"""HardSwish and HardSigmoid in integers, of kernels that onnxruntime has.

onnxruntime has no integer HardSwish and no integer HardSigmoid, so each costs a way through float32: dequantize,
compute, quantize. Here the clipping that quantizing does anyway is made to compute them. An 8-bit number q that stands
for x = 6/255 (q - 128) covers [-3, 3] and is clipped at its ends; the same q read as q/255 is then
HardSigmoid(x) = clip(x/6 + 1/2, 0, 1), to half a step of its 255 and without any error at the ends. So

- HardSigmoid of a convolution's output costs nothing: the convolution's result is written in the one scale and read in
  the other;
- HardSwish(x) = x * HardSigmoid(x) costs a change of scale, for which QLinearLeakyRelu of slope 1 serves (a look-up
  in a table of 256), and a QLinearMul.

With its optimizations off onnxruntime computes the same in float32, so the file means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import helper

from pocketdx_export.quantize.qdq import Scale, sort_nodes

GATE_WRITTEN = Scale(6 / 255, 128)
GATE_READ = Scale(1 / 255, 0)


def integer_activations(
    model: onnx.ModelProto, blocks: Mapping[str, str], chosen: Collection[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """Change `model` so that HardSwish and HardSigmoid of the chosen blocks can be computed in integers.

    Returns:
        The blocks of the nodes, those made here included; and the tensors to be written as `GATE_WRITTEN` and read as
        `GATE_READ`. Until that is done (by `insert_qdq`), the graph does not compute what it did.
    """
    graph = model.graph
    extended, gates = dict(blocks), set()
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    made_by = {name: node for node in graph.node for name in node.output}
    for node in [each for each in graph.node if blocks.get(each.name) in chosen]:
        source, result, block = node.input[0], node.output[0], blocks[node.name]
        if node.op_type == "HardSwish":
            gate = f"{result}.gate"
            rescaled = helper.make_node("LeakyRelu", [source], [gate], name=f"{node.name}.gate", alpha=1.0)
            product = helper.make_node("Mul", [source, gate], [result], name=f"{node.name}.product")
            made = [rescaled, product]
        elif node.op_type == "HardSigmoid" and readers[source] == 1 and made_by[source].op_type == "Conv":
            gate, made = source, []
            for reader in graph.node:
                for place, name in enumerate(reader.input):
                    if name == result:
                        reader.input[place] = source
        else:
            continue
        gates.add(gate)
        graph.node.remove(node)
        graph.node.extend(made)
        extended |= {each.name: block for each in made}
    sort_nodes(graph)
    return extended, frozenset(gates)
