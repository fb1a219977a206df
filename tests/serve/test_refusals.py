"""What a bad request gets: 4xx with the reason, as problem details; never a 500, never a trace of its content."""

from __future__ import annotations

import json
import logging
import random
import select
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_serve import engine, problems
from pocketdx_serve.schemas import ProblemDetails
from raw_http import diagnose_head

Picture = Callable[..., bytes]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_problem(reply: Any, status: int, reason: str) -> dict[str, Any]:
    assert (reply.status_code, reply.json().get("reason")) == (status, reason), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = reply.json()
    ProblemDetails.model_validate(document)
    assert document["status"] == status
    assert document["type"] == f"urn:pocketdx:problem:{reason}"
    assert document["request_id"] == reply.headers["x-request-id"]
    return document


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def test_an_empty_body_is_refused(live: Any) -> None:
    check_problem(live.post("/v1/diagnose", b""), 400, "empty")


def test_a_form_without_an_image_is_refused(live: Any) -> None:
    form = "multipart/form-data; boundary=b"
    check_problem(live.post("/v1/diagnose", b"--b--\r\n", form), 400, "empty")


def test_an_empty_file_in_a_form_is_refused(live: Any) -> None:
    check_problem(live.client.post("/v1/diagnose", files={"image": b""}), 400, "empty")


@pytest.mark.parametrize("data", [b"hello", b"\0" * 1000, b"\x7fELF" * 20])
def test_what_is_no_image_is_refused(live: Any, data: bytes) -> None:
    check_problem(live.post("/v1/diagnose", data), 415, "not-an-image")


def test_a_format_that_is_known_but_not_read_is_refused_with_a_remedy(live: Any) -> None:
    document = check_problem(live.post("/v1/diagnose", b"%PDF-1.7 ..."), 415, "unsupported")
    assert "PNG or JPEG" in document["detail"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_with_its_reason_and_a_remedy(live: Any, make_picture: Picture, kind: str) -> None:
    data = make_picture(1, size=(200, 150), kind=kind)
    document = check_problem(live.post("/v1/diagnose", data[: len(data) * 2 // 3]), 422, "truncated")
    assert document["errors"] == [{"index": 0, "reason": "truncated", "detail": document["detail"]}]
    assert ";" in document["detail"], "a remedy follows what is wrong"


def test_a_damaged_image_is_refused(live: Any, make_picture: Picture) -> None:
    data = bytearray(make_picture(1, kind="PNG"))
    at = data.index(b"IDAT") + 4
    data[at : at + 40] = b"\xff" * 40
    reply = live.post("/v1/diagnose", bytes(data))
    check_problem(reply, 422, "corrupt")


def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding(live: Any) -> None:
    document = check_problem(live.post("/v1/diagnose", png_that_claims(30_000, 30_000)), 413, "too-large")
    assert "pixel" in document["detail"]


def test_a_picture_without_pixels_is_refused(live: Any) -> None:
    assert live.post("/v1/diagnose", png_that_claims(0, 10)).status_code == 422


def test_the_pixel_limit_is_the_operators(serve: Callable[..., Any], make_picture: Picture) -> None:
    live = serve(max_pixels=100 * 100)
    assert live.post("/v1/diagnose", make_picture(size=(100, 100))).status_code == 200
    check_problem(live.post("/v1/diagnose", make_picture(size=(100, 101))), 413, "too-large")


def test_one_bad_image_of_several_is_named_by_its_position(live: Any, jpeg: bytes) -> None:
    reply = live.client.post("/v1/diagnose", files=[("image", jpeg), ("image", jpeg[:300]), ("image", b"x")])
    document = check_problem(reply, 422, "truncated")
    assert [(fault["index"], fault["reason"]) for fault in document["errors"]] == [
        (1, "truncated"),
        (2, "not-an-image"),
    ]
    assert document["detail"].startswith("image 1: ")
    assert "2 of 3 images" in document["detail"]


def test_too_many_images_are_refused_without_reading_the_rest(serve: Callable[..., Any], jpeg: bytes) -> None:
    live = serve(max_images=3)
    files = [("image", jpeg)] * 3
    assert len(live.client.post("/v1/diagnose", files=files).json()["results"]) == 3
    check_problem(live.client.post("/v1/diagnose", files=[*files, ("image", jpeg)]), 413, "too-many-images")


def test_a_body_declared_too_large_is_refused_before_a_byte_is_sent(serve: Callable[..., Any]) -> None:
    live = serve(max_bytes=1000)
    with live.connect() as sock:
        sock.sendall(diagnose_head(1001, b"Expect: 100-continue"))
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b"connection: close" in answer.lower()
    assert b"100 Continue" not in answer


def test_an_endless_body_is_refused_while_it_streams(serve: Callable[..., Any]) -> None:
    live = serve(max_bytes=200_000)
    piece = b"10000\r\n" + b"\xff\xd8" * 32768 + b"\r\n"
    sent = 0
    with live.connect() as sock:
        sock.sendall(
            b"POST /v1/diagnose HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while not select.select([sock], [], [], 0.01)[0]:
            sock.sendall(piece)
            sent += len(piece)
            assert sent < 50_000_000, "nobody stopped it"
        answer = b""
        while b"}" not in answer:
            answer += sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b'"reason": "too-large"' in answer
    assert live.service.held.total == 0


def test_a_client_that_sends_everything_first_still_reads_the_413(serve: Callable[..., Any]) -> None:
    """No reset: the rest of the body is read and thrown away before the connection is closed."""
    live = serve(max_bytes=1000)
    with live.connect() as sock:
        size = 20_000_000
        sock.sendall(diagnose_head(size))
        sock.sendall(b"\0" * size)
        answer = b""
        while received := sock.recv(65536):
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert answer.endswith(b"}")


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "garbage", "/", ";"]
)
def test_another_content_type_is_refused_with_the_ones_accepted(live: Any, jpeg: bytes, content_type: str) -> None:
    reply = live.post("/v1/diagnose", jpeg, content_type)
    check_problem(reply, 415, "content-type")
    assert "image/*" in reply.headers["accept"]


def test_a_compressed_body_is_refused(live: Any, jpeg: bytes) -> None:
    reply = live.post("/v1/diagnose", jpeg, **{"Content-Encoding": "gzip"})
    check_problem(reply, 415, "content-encoding")
    assert reply.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data"])
def test_a_coded_body_is_refused_for_that_whatever_else_is_wrong_with_it(live: Any, content_type: str) -> None:
    reply = live.post("/v1/diagnose", b"", content_type, **{"Content-Encoding": "gzip"})
    check_problem(reply, 415, "content-encoding")


BOUNDARY = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n'
MANY_HEADERS = (b"X: " + b"y" * 2500 + b"\r\n") * 4


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("multipart/form-data", PART + b"x\r\n--b--\r\n", "malformed-multipart"),
        ("multipart/form-data; boundary=", PART + b"x\r\n--b--\r\n", "malformed-multipart"),
        (f"multipart/form-data; boundary={'b' * 71}", b"", "malformed-multipart"),
        ("multipart/form-data; boundary=other", PART + b"x\r\n--b--\r\n", "malformed-multipart"),
        (BOUNDARY, b"", "malformed-multipart"),
        (BOUNDARY, PART + b"ends without a boundary", "malformed-multipart"),
        (BOUNDARY, PART + b"ends within the boundary\r\n--", "malformed-multipart"),
        (BOUNDARY, b"--b\r\nno colon here\r\n\r\nx\r\n--b--\r\n", "malformed-multipart"),
        (BOUNDARY, b"--b\r\nX-Long: " + b"y" * 9000 + b"\r\n\r\nx\r\n--b--\r\n", "malformed-multipart"),
        (BOUNDARY, b"--b\r\n" + b"X: " + b"y" * 2500 + b"\r\n", "malformed-multipart"),
        (
            BOUNDARY,
            b"--b\r\n" + (b"X: " + b"y" * 2500 + b"\r\n") * 4 + PART[5:] + b"x\r\n--b--\r\n",
            "malformed-multipart",
        ),
        (BOUNDARY, b"--b\r\nX-A: 1\r\n\r\nx\r\n--b--\r\n", "unexpected-field"),
        (BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n', "unexpected-field"),
        (BOUNDARY, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "unexpected-field"),
    ],
)
def test_a_malformed_form_is_refused(live: Any, content_type: str, body: bytes, reason: str) -> None:
    check_problem(live.post("/v1/diagnose", body, content_type), 400, reason)


def test_a_form_arriving_byte_by_byte_is_read_like_any_other(live: Any, jpeg: bytes) -> None:
    body = PART + jpeg + b"\r\n--b--\r\n"
    whole = live.post("/v1/diagnose", body, BOUNDARY)
    pieces = (body[at : at + 7] for at in range(0, len(body), 7))
    crumbs = live.client.post("/v1/diagnose", content=pieces, headers={"Content-Type": BOUNDARY})
    assert whole.status_code == crumbs.status_code == 200
    assert crumbs.json() == whole.json()


def test_an_unknown_address_and_a_wrong_method_are_problems_too(live: Any) -> None:
    check_problem(live.client.get("/v1/nothing"), 404, "not-found")
    reply = live.client.get("/v1/diagnose")
    check_problem(reply, 405, "method-not-allowed")
    assert reply.headers["allow"] == "POST"


@pytest.mark.parametrize("reason", list(ImageReason))
def test_every_reason_of_the_runtime_is_a_4xx(live: Any, monkeypatch: pytest.MonkeyPatch, reason: ImageReason) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise ImageError("image", reason, "something is wrong; do something")

    monkeypatch.setattr(engine, "load", refuse)
    reply = live.post("/v1/diagnose", b"x")
    assert 400 <= reply.status_code < 500
    check_problem(reply, problems.kind_of(reason).status, problems.kind_of(reason).reason)


def test_a_decoder_that_breaks_is_a_refusal_and_a_log_line_without_content(
    live: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, jpeg: bytes
) -> None:
    def stumble(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyError("PATIENT NAME")

    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "pocketdx.serve"):
        patched.setattr(engine, "load", stumble)
        document = check_problem(live.post("/v1/diagnose", jpeg), 422, "corrupt")
    assert "PATIENT" not in json.dumps(document)
    assert [record.getMessage() for record in caplog.records].count("an image broke the decoder") == 1
    assert live.post("/v1/diagnose", jpeg).status_code == 200


def test_an_image_that_needs_more_memory_than_there_is_gets_a_503(
    live: Any, monkeypatch: pytest.MonkeyPatch, jpeg: bytes
) -> None:
    def exhaust(*_args: Any, **_kwargs: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine, "load", exhaust)
        reply = live.post("/v1/diagnose", jpeg)
    check_problem(reply, 503, "out-of-memory")
    assert reply.headers["retry-after"] == "1"


def test_a_fault_of_the_model_is_a_500_that_says_nothing_about_the_inside(
    serve: Callable[..., Any], jpeg: bytes
) -> None:
    live = serve()

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(live.service.models.default.model, name)

        def run(self, _pixels: Any, _outputs: Any) -> Any:
            raise RuntimeError("secret path /models/x")

    live.engine.model = Broken()
    reply = live.post("/v1/diagnose", jpeg)
    check_problem(reply, 500, "internal")
    assert "secret" not in reply.text
    live.engine.model = live.service.models.default.model
    assert live.post("/v1/diagnose", jpeg).status_code == 200


def test_a_fault_anywhere_else_is_a_problem_with_the_security_headers_too(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = serve()

    def stumble() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(live.service, "check_ready", stumble)
    reply = live.client.get("/readyz")
    check_problem(reply, 500, "internal")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "secret" not in reply.text


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Cut, flip, splice, repeat, and cross bytes, as a broken upload or an attacker would."""
    dice = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(mutant) or 1)
            match dice.randrange(5):
                case 0:
                    del mutant[at:]
                case 1:
                    mutant[at : at + 1] = bytes([dice.randrange(256)])
                case 2:
                    mutant[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
                case 3:
                    del mutant[at : at + dice.randint(1, 64)]
                case 4:
                    mutant[at:at] = dice.randbytes(dice.randint(1, 64))
        yield bytes(mutant)


def real_or_drawn(folder: Path, make_picture: Picture) -> list[bytes]:
    paths = [folder / "chest-xray/test/NORMAL", folder / "breast-ultrasound/benign", folder / "blood-smear/test/RBC"]
    real = [sorted(path.iterdir())[0].read_bytes() for path in paths if path.is_dir()]
    return real + [make_picture(3, kind=kind) for kind in ("WEBP", "BMP", "TIFF", "GIF")]


def test_mutated_images_never_get_a_5xx_and_the_next_good_one_is_answered(
    live: Any, jpeg: bytes, make_picture: Picture
) -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    seen: dict[int, int] = {}
    for seed, data in enumerate(real_or_drawn(folder, make_picture)):
        for mutant in mutations(data, 60, seed):
            reply = live.post("/v1/diagnose", mutant)
            seen[reply.status_code] = seen.get(reply.status_code, 0) + 1
            assert reply.status_code in (200, 400, 413, 415, 422), (reply.status_code, reply.text, mutant[:64])
    assert seen.get(422, 0) > 20, f"the mutations should break images: {seen}"
    assert live.post("/v1/diagnose", jpeg).status_code == 200


def test_mutated_forms_never_get_a_5xx_and_the_next_good_one_is_answered(live: Any, jpeg: bytes) -> None:
    body = PART + jpeg[:200] + b"\r\n" + PART + b"\r\n--b--\r\n"
    content_types = list(mutations(BOUNDARY.encode(), 100, 1))
    for seed, mutant in enumerate(mutations(body, 200, 2)):
        content_type = BOUNDARY.encode() if seed % 2 else content_types[seed // 2]
        printable = bytes(byte for byte in content_type if 0x20 < byte < 0x7F)
        reply = live.client.post("/v1/diagnose", content=mutant, headers={"Content-Type": printable})
        assert reply.status_code in (400, 413, 415, 422), (reply.status_code, reply.text, mutant, printable)
    assert live.client.post("/v1/diagnose", files={"image": jpeg}).status_code == 200
