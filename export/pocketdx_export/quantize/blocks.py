"""A network's blocks: what the search moves between integers and float32 as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx

# `network.backbone.features.7.block.0.0.weight` is of the block `features.7`.
_BLOCK = re.compile(r"network\.backbone\.(features\.\d+|classifier)\b")


def block_of_nodes(graph: onnx.GraphProto) -> dict[str, str]:
    """The block of each node by the node's name, in the graph's order; nodes before and after the network have none.

    A node without weights belongs to the block of the last weights before it in the graph's order. After the last
    weights, the network has ended: what follows are the softmax and the embedding's length.
    """
    constants = {each.name for each in graph.initializer}
    own = {
        node.name: found.group(1)
        for node in graph.node
        for name in node.input
        if name in constants and (found := _BLOCK.search(name))
    }
    last = max((number for number, node in enumerate(graph.node) if node.name in own), default=-1)
    blocks: dict[str, str] = {}
    block = ""
    for number, node in enumerate(graph.node):
        block = own.get(node.name, block)
        if block and number <= last:
            blocks[node.name] = block
    return blocks


def block_names(blocks: Mapping[str, str]) -> tuple[str, ...]:
    """Distinct names in the graph's order."""
    return tuple(dict.fromkeys(blocks.values()))
