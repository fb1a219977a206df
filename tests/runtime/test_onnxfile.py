"""Reading ONNX files without onnx: the same facts as the onnx package reads, and no crash on anything."""

from contextlib import suppress
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pocketdx_runtime import onnxfile
from pocketdx_runtime.onnxfile import NotOnnxError, summarize

PROTOS = {
    "model": onnx.ModelProto,
    "graph": onnx.GraphProto,
    "function": onnx.FunctionProto,
    "node": onnx.NodeProto,
    "attribute": onnx.AttributeProto,
    "sparse": onnx.SparseTensorProto,
    "tensor": onnx.TensorProto,
}


def external() -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def model_with(**graph_fields: object) -> onnx.ModelProto:
    return onnx.ModelProto(ir_version=9, graph=onnx.GraphProto(**graph_fields))  # type: ignore[arg-type]


def test_the_field_numbers_are_those_of_the_onnx_package() -> None:
    for kind, children in onnxfile._CHILDREN.items():
        fields = {
            field.number: field.message_type.name
            for field in PROTOS[kind].DESCRIPTOR.fields
            if field.message_type is not None
        }
        followed = {number: PROTOS[child].DESCRIPTOR.name for number, child in children.items()}
        messages = {proto.DESCRIPTOR.name for proto in PROTOS.values()}
        # Training graphs are never run by onnxruntime's inference, so they are not followed.
        assert followed == {number: name for number, name in fields.items() if name in messages}, kind
    by_name = onnx.TensorProto.DESCRIPTOR.fields_by_name
    assert by_name["data_location"].number == onnxfile._DATA_LOCATION
    assert onnx.ModelProto.DESCRIPTOR.fields_by_name["metadata_props"].number == onnxfile._METADATA
    assert onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number == onnxfile._GRAPH
    assert TensorProto.EXTERNAL == onnxfile._EXTERNAL


def test_metadata_is_read_as_onnx_wrote_it(tiny: ModuleType) -> None:
    proto = tiny.tiny_model_proto()
    proto.metadata_props.add(key="größe", value="naïve ☃")
    summary = summarize(proto.SerializeToString())
    assert summary.metadata == {each.key: each.value for each in proto.metadata_props}
    assert summary.external_data is False


@pytest.mark.parametrize(
    "proto",
    [
        model_with(initializer=[external()]),
        model_with(sparse_initializer=[onnx.SparseTensorProto(values=external())]),
        model_with(node=[helper.make_node("Constant", [], ["c"], value=external())]),
        model_with(
            node=[
                helper.make_node(
                    "If", ["c"], ["y"], then_branch=helper.make_graph([], "t", [], [], initializer=[external()])
                )
            ]
        ),
        onnx.ModelProto(
            graph=onnx.GraphProto(),
            functions=[onnx.FunctionProto(node=[helper.make_node("Constant", [], ["c"], value=external())])],
        ),
    ],
    ids=["initializer", "sparse initializer", "constant", "subgraph", "function"],
)
def test_weights_in_other_files_are_found_wherever_they_are(proto: onnx.ModelProto) -> None:
    assert summarize(proto.SerializeToString()).external_data is True


def test_weights_inside_are_not_taken_for_external_ones() -> None:
    inside = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    assert summarize(model_with(initializer=[inside]).SerializeToString()).external_data is False


def test_a_file_cut_anywhere_is_never_read_as_the_whole(model_bytes: bytes) -> None:
    whole = summarize(model_bytes)
    refused = 0
    for end in range(len(model_bytes)):
        try:
            cut = summarize(model_bytes[:end])
        except NotOnnxError:
            refused += 1
        else:
            assert cut.metadata != whole.metadata, f"cut at {end}"
    assert refused > 0.99 * len(model_bytes)


@pytest.mark.parametrize("data", [b"", b"hello world", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x80" * 20, bytes(50)])
def test_other_files_are_not_onnx(data: bytes) -> None:
    with pytest.raises(NotOnnxError):
        summarize(data)


def test_a_nest_without_end_is_refused() -> None:
    graph = onnx.GraphProto()
    for _ in range(200):
        outer = onnx.GraphProto()
        outer.node.add().attribute.add().g.CopyFrom(graph)
        graph = outer
    with pytest.raises(NotOnnxError, match="nested too deeply"):
        summarize(b"\x3a" + varint(graph.ByteSize()) + graph.SerializeToString())


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@given(st.binary(max_size=200))
def test_random_bytes_give_an_answer_or_the_documented_error(data: bytes) -> None:
    with suppress(NotOnnxError):
        summarize(data)


@given(st.data())
def test_a_damaged_file_gives_an_answer_or_the_documented_error(model_bytes: bytes, data: st.DataObject) -> None:
    damaged = bytearray(model_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(NotOnnxError):
        summarize(bytes(damaged))
