"""The Open Inference Protocol V2: Triton's own client, unmodified, and what a malformed request gets."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.image import load
from pocketdx_runtime.model import Model

httpclient = pytest.importorskip("tritonclient.http")
Picture = Callable[..., bytes]
INFER = "/v2/models/tiny/infer"


@pytest.fixture
def triton(live: Any) -> Iterator[Any]:
    client = httpclient.InferenceServerClient(live.url.removeprefix("http://"))
    yield client
    client.close()


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)


def the_input(array: np.ndarray[Any, Any], datatype: str = "UINT8", *, binary: bool = True) -> Any:
    tensor = httpclient.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_tritons_client_finds_server_and_model(triton: Any, model: Model) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert not triton.is_model_ready("other")
    assert not triton.is_model_ready("tiny", "2")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = triton.get_model_metadata("tiny")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert [each["name"] for each in metadata["outputs"]] == list(model.manifest.outputs)
    assert metadata["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 2]}
    assert metadata["parameters"]["digest"] == model.digest


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritons_client_gets_the_models_own_outputs(
    triton: Any, model: Model, pixels: Any, binary_in: bool, binary_out: bool
) -> None:
    wanted = ["embedding", "logits"]
    outputs = [httpclient.InferRequestedOutput(name, binary_data=binary_out) for name in wanted]
    result = triton.infer("tiny", [the_input(pixels, binary=binary_in)], outputs=outputs, request_id="ward-7")
    expected = [model.run(each[np.newaxis], wanted) for each in pixels]
    assert result.get_response()["id"] == "ward-7"
    assert [each["name"] for each in result.get_response()["outputs"]] == wanted
    for name in wanted:
        np.testing.assert_array_equal(result.as_numpy(name), np.concatenate([each[name] for each in expected]))


def test_without_outputs_all_of_them_are_answered(triton: Any, model: Model, pixels: Any) -> None:
    result = triton.infer("tiny", [the_input(pixels)], model_version="1")
    assert [each["name"] for each in result.get_response()["outputs"]] == list(model.manifest.outputs)
    assert result.as_numpy("probabilities").shape == (3, 2)


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images_are_decoded_as_everywhere_else(
    live: Any, triton: Any, model: Model, make_picture: Picture, binary: bool
) -> None:
    pictures = [make_picture(seed) for seed in range(2)]
    size = model.manifest.preprocessing.size
    expected = [model.run(load(each, size)[np.newaxis], ["logits"])["logits"][0] for each in pictures]
    if binary:
        result = triton.infer("tiny", [the_input(np.array(pictures, dtype=object), "BYTES")])
        found = result.as_numpy("logits")
    else:
        data = [base64.b64encode(each).decode() for each in pictures]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": data}
        reply = live.client.post(INFER, json={"inputs": [tensor], "outputs": [{"name": "logits"}]})
        assert reply.headers["content-type"] == "application/json"
        found = np.array(reply.json()["outputs"][0]["data"], np.float32).reshape(2, 2)
    np.testing.assert_array_equal(found, expected)


def test_the_clients_exception_says_what_was_wrong(triton: Any, pixels: Any) -> None:
    with pytest.raises(httpclient.InferenceServerException, match="the models here are: tiny"):
        triton.infer("other", [the_input(pixels)])
    with pytest.raises(httpclient.InferenceServerException, match="the outputs are logits"):
        triton.infer("tiny", [the_input(pixels)], outputs=[httpclient.InferRequestedOutput("heat")])
    with pytest.raises(httpclient.InferenceServerException, match="more than 16 images"):
        triton.infer("tiny", [the_input(np.zeros((17, 1, 1, 3), np.uint8))])
    with pytest.raises(httpclient.InferenceServerException, match="not a picture"):
        triton.infer("tiny", [the_input(np.array([b"hello"], dtype=object), "BYTES")])


def test_json_too_long_for_the_event_loop_is_answered_all_the_same(live: Any, model: Model) -> None:
    array = np.random.default_rng(1).integers(0, 256, (1, 150, 200, 3), dtype=np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(array.shape), "data": array.tolist()}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]})
    assert len(body) > 64 * 1024
    data = live.client.post(INFER, content=body).json()["outputs"][0]["data"]
    assert data == model.run(array, ["logits"])["logits"][0].tolist()
    broken = live.client.post(INFER, content=body.replace("255", "256").replace("254", "256"))
    assert (broken.status_code, broken.json()["reason"]) == (400, "bad-request")


TENSOR = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}


def changed(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{**TENSOR, **fields}]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b"{}", 400),
        ({"inputs": []}, 400),
        ({"inputs": [TENSOR, TENSOR]}, 400),
        ({"inputs": ["image"]}, 400),
        ({"inputs": [TENSOR], "id": 7}, 400),
        ({"inputs": [TENSOR], "parameters": []}, 400),
        ({"inputs": [TENSOR], "outputs": "logits"}, 400),
        ({"inputs": [TENSOR], "outputs": [{"name": ["logits"]}]}, 404),
        ({"inputs": [TENSOR], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]}, 400),
        (changed(name="picture"), 400),
        (changed(datatype="FP32"), 400),
        (changed(shape="1"), 400),
        (changed(shape=[1, 1, 3]), 400),
        (changed(shape=[1, 1, -1, 3]), 400),
        (changed(shape=[1, 1, True, 3]), 400),
        (changed(shape=[1, 1, 1.0, 3]), 400),
        (changed(shape=[1, 10**30, 1, 3]), 400),
        (changed(shape=[1, 1, 2, 3]), 400),
        (changed(shape=[1, 1, 0, 3], data=[]), 422),
        (changed(shape=[0, 1, 1, 3], data=[]), 422),
        (changed(shape=[1, 40_000, 1, 3]), 413),
        (changed(shape=[1, 30_000, 30_000, 3]), 413),
        (changed(shape=[17, 1, 1, 3]), 413),
        (changed(data=[1, 2]), 400),
        (changed(data=[1, 2, 256]), 400),
        (changed(data=[1, 2, -1]), 400),
        (changed(data=[1, 2, 10**30]), 400),
        (changed(data=[1, 2, 3.5]), 400),
        (changed(data=[True, True, False]), 400),
        (changed(data=["1", "2", "3"]), 400),
        (changed(data=[[1, 2], [3]]), 400),
        (changed(data=[[1, 2, 3]]), 400),
        (changed(data=None), 400),
        (changed(parameters={"binary_data_size": 3}), 400),
        (changed(parameters={"binary_data_size": "0"}), 400),
        (changed(parameters={"shared_memory_region": "x"}), 400),
        (changed(datatype="BYTES", shape=[1], data=["no base64"]), 400),
        (changed(datatype="BYTES", shape=[1], data=["é"]), 400),
        (changed(datatype="BYTES", shape=[2], data=["aGk="]), 400),
        (changed(datatype="BYTES", shape=[], data=["aGk="]), 400),
        (changed(datatype="BYTES", shape=[1], data=["aGk="]), 415),
        (changed(datatype="BYTES", shape=[1], data=[""]), 400),
        (changed(datatype="BYTES", shape=[0], data=[]), 400),
    ],
)
def test_a_malformed_request_is_a_problem_with_the_protocols_error_member(live: Any, body: Any, status: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = live.client.post(INFER, content=content)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"] == reply.json()["detail"]


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999999", "é"])
def test_a_header_length_outside_the_body_is_refused(live: Any, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    reply = live.client.post(INFER, content=json.dumps(changed()), headers=headers)
    assert (reply.status_code, reply.json()["reason"]) == (400, "bad-request")


@pytest.mark.parametrize(
    "raw", [b"", b"\1\0\0", struct.pack("<I", 5) + b"four", struct.pack("<I", 2**32 - 1), struct.pack("<I", 0) * 50]
)
def test_encoded_images_with_wrong_lengths_are_refused(live: Any, raw: bytes) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert live.client.post(INFER, content=head + raw, headers=headers).status_code == 400


def test_the_graph_itself_resizes_pixels_as_the_decoder_would(live: Any, make_picture: Picture, model: Model) -> None:
    """A client that sends its own pixels gets the answer of the encoded picture, to within rounding."""
    import io

    data = make_picture(4, size=(200, 120), kind="PNG")
    array = np.asarray(Image.open(io.BytesIO(data)))[np.newaxis]
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(array.shape), "data": array.ravel().tolist()}
    sent = live.client.post(INFER, json={"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).json()
    encoded = live.post("/v1/diagnose", data, "image/png").json()["results"][0]["probabilities"]
    np.testing.assert_allclose(sent["outputs"][0]["data"], list(encoded.values()), atol=5e-3)
