"""Read what is needed of an ONNX file without the onnx package and without starting an engine.

An ONNX file is one Protocol Buffers message: a sequence of (field number, wire type, value). Fields that are
not needed are stepped over, weights among them, so this touches a few kilobytes of a file of any size.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_GRAPH: Final = 7
_METADATA: Final = 14
_KEY, _VALUE = 1, 2
_DATA_LOCATION, _EXTERNAL = 14, 1

# Where tensors can hide: message -> field number -> message in that field.
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {_GRAPH: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_MAX_DEPTH: Final = 100  # as protobuf's own parsers


class NotOnnxError(ValueError):
    """The bytes are not an ONNX model: another kind of file, or a damaged or cut one."""


@dataclass(frozen=True, slots=True)
class OnnxSummary:
    """What an ONNX file says before it is run.

    Attributes:
        metadata: the model's metadata properties.
        external_data: whether some weights lie in other files.
    """

    metadata: Mapping[str, str]
    external_data: bool


def summarize(data: bytes | memoryview) -> OnnxSummary:
    """Step through an ONNX file.

    Raises:
        NotOnnxError: the bytes are not one whole protobuf message with a graph in it.
    """
    view = memoryview(data)
    metadata: dict[str, str] = {}
    has_graph = False
    for number, value in _fields(view):
        has_graph |= number == _GRAPH and isinstance(value, memoryview)
        if number == _METADATA and isinstance(value, memoryview):
            entry = {n: bytes(v) for n, v in _fields(value) if isinstance(v, memoryview)}
            try:
                metadata[entry.get(_KEY, b"").decode()] = entry.get(_VALUE, b"").decode()
            except UnicodeDecodeError:
                raise NotOnnxError("a metadata property is not UTF-8") from None
    if not has_graph:
        raise NotOnnxError("no graph in it")
    return OnnxSummary(metadata, _has_external_data(view, "model", 0))


def _has_external_data(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise NotOnnxError("nested too deeply")
    children = _CHILDREN[kind]
    for number, value in _fields(message):
        if isinstance(value, int):
            if kind == "tensor" and number == _DATA_LOCATION and value == _EXTERNAL:
                return True
        elif number in children and _has_external_data(value, children[number], depth + 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field in turn: int for varints, bytes for everything else."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise NotOnnxError(f"wire type {wire_type}")
        if number == 0 or position + length > end:
            raise NotOnnxError("cut off, or not protobuf")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise NotOnnxError("cut off, or not protobuf")
