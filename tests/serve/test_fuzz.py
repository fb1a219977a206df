"""Thousands of broken bodies, and whatever Schemathesis makes of the OpenAPI document. Slow."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketdx_runtime.model import Model

Serve = Callable[..., Any]
BODIES = 3000
TYPES = ("image/jpeg", "image/png", "application/octet-stream", "application/dicom", "multipart/form-data; boundary=b")
PATHS = ("/v1/diagnose", "/v1/embed", "/v2/models/tiny/infer")
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n%s\r\n--b--\r\n'
TENSOR = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1,1,3],"data":[1,2,3]}],"id":"x"}'


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that unpacks to ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side * (side + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def broken(originals: list[bytes], count: int) -> Iterator[tuple[str, bytes, str]]:
    """Address, body and content type, one after the other broken in another way; the same ones in each run."""
    dice = random.Random(0)
    for number in range(count):
        body = bytearray(dice.choice(originals))
        for _ in range(dice.randint(1, 5)):
            at = dice.randrange(len(body) or 1)
            match dice.randrange(7):
                case 0:
                    del body[at:]
                case 1:
                    body[at : at + 1] = dice.randbytes(1)
                case 2:
                    body[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
                case 3:
                    body[at:at] = dice.randbytes(dice.randint(1, 64))
                case 4:
                    del body[at : at + dice.randint(1, 64)]
                case 5:
                    body += body[at : at + 200]
                case 6 if number % 10 == 0:
                    body = bytearray(dice.randbytes(dice.randint(0, 3000)))
        yield dice.choices(PATHS, [6, 1, 3])[0], bytes(body), dice.choice(TYPES)


def resident(live: Any) -> float:
    return float(re.search(r"^process_resident_memory_bytes (\S+)", live.client.get("/metrics").text, re.M).group(1))  # type: ignore[union-attr]


@pytest.mark.slow
def test_thousands_of_broken_bodies_get_no_5xx_and_cost_no_memory(
    serve: Serve, make_picture: Callable[..., bytes], shared_data: Path, jpeg: bytes
) -> None:
    live = serve()
    folders = ("chest-xray/test/NORMAL", "breast-ultrasound/benign", "blood-smear/test/RBC")
    originals = [sorted((shared_data / each).iterdir())[0].read_bytes() for each in folders]
    originals += [make_picture(3, kind=kind) for kind in ("PNG", "WEBP", "BMP", "TIFF", "GIF")]
    originals += [PART % jpeg, TENSOR, TENSOR[:-10], bomb(1000)]
    seen: Counter[int] = Counter()

    def send(bodies: Iterator[tuple[str, bytes, str]]) -> None:
        for path, body, content_type in bodies:
            reply = live.post(path, body, content_type)
            seen[reply.status_code] += 1
            assert reply.status_code in (200, 400, 404, 413, 415, 422), (reply.status_code, reply.text, body[:64])
        assert live.post("/v1/diagnose", bomb(8000), "image/png").status_code == 413

    send(broken(originals, BODIES // 3))
    before = resident(live)
    send(broken(originals, BODIES))
    assert resident(live) < before * 1.1 + 8e6
    assert seen[422] > BODIES / 10, seen
    assert live.post("/v1/diagnose", jpeg).status_code == 200


@pytest.mark.slow
def test_schemathesis_finds_nothing(serve: Serve, tiny_model_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    live = serve(model=Model(tiny_model_path, threads=1))
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    tried: Counter[str] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            tried[case.operation.label] += 1
            # Among its checks: no 5xx, only documented statuses and content types, answers that fit their schema.
            # Not those that want bodies refused for what their schema says: an image is any bytes.
            response = case.call()
            if response.status_code in (503, 504):
                return
            case.validate_response(
                response,
                checks=[
                    schemathesis.checks.not_a_server_error,
                    schemathesis.specs.openapi.checks.status_code_conformance,
                    schemathesis.specs.openapi.checks.content_type_conformance,
                    schemathesis.specs.openapi.checks.response_schema_conformance,
                ],
            )

        check()
    assert len(tried) > 10
    assert live.client.get("/readyz").status_code == 200
