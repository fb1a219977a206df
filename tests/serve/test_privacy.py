"""Images stay in memory: nothing of them, nor of their names, reaches a disk or a log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketdx_serve.envelope import Envelope
from pocketdx_serve.logs import JsonFormatter
from pocketdx_serve.metrics import Metrics


@contextmanager
def opened_for_writing() -> Iterator[list[str]]:
    """Paths this process opens for writing."""
    paths: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & 0b11
            if writes:
                paths.append(str(path))

    sys.addaudithook(hook)  # a hook cannot be removed, only told to sleep
    try:
        yield paths
    finally:
        watching = False


def test_a_large_upload_touches_no_disk(live: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    assert len(out.getvalue()) > 3_000_000
    with opened_for_writing() as paths:
        form = live.client.post("/v1/diagnose", files={"image": ("patient-smith.png", out.getvalue())})
        raw = live.post("/v1/diagnose", out.getvalue(), "image/png")
    assert form.status_code == raw.status_code == 200
    assert paths == []


def test_logs_hold_neither_names_nor_content_nor_addresses_a_client_made_up(
    live: Any, caplog: pytest.LogCaptureFixture, jpeg: bytes
) -> None:
    def lines() -> list[str]:
        mine = [record for record in caplog.records if "log-test" in str(getattr(record, "fields", ""))]
        return [JsonFormatter().format(record) for record in mine]

    def name(n: int) -> dict[str, str]:
        return {"X-Request-ID": f"log-test-{n}"}

    with caplog.at_level(logging.INFO, "pocketdx.serve"):
        live.client.post("/v1/diagnose", files={"image": ("patient-smith.jpg", jpeg)}, headers=name(1))
        live.client.post("/v1/diagnose", files={"image": ("patient-smith.jpg", b"smith" * 10)}, headers=name(2))
        live.client.post("/v1/diagnose", files={"smith": ("patient-smith.jpg", jpeg)}, headers=name(3))
        live.client.get("/smith?name=smith", headers=name(4))
        live.client.put("/v1/model", headers=name(5))
        end = time.monotonic() + 5  # a line is written after its response
        while len(lines()) < 5 and time.monotonic() < end:
            time.sleep(0.01)
    requests = [json.loads(line) for line in lines()]
    assert [(each["method"], each["route"], each["status"]) for each in requests] == [
        ("POST", "/v1/diagnose", 200),
        ("POST", "/v1/diagnose", 415),
        ("POST", "/v1/diagnose", 400),
        ("GET", "unknown", 404),
        ("PUT", "/v1/model", 405),
    ]
    assert [each["request_id"] for each in requests] == [f"log-test-{n}" for n in range(1, 6)]
    assert all(each["ms"] >= 0 for each in requests)
    assert requests[0]["images"] == 1
    assert requests[0]["bytes"] > len(jpeg)
    assert "smith" not in "\n".join(lines()).lower()


def test_a_method_a_client_made_up_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 405, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ignore(*_message: Any) -> Any: ...

    with caplog.at_level(logging.INFO, "pocketdx.serve"):
        asyncio.run(Envelope(app, Metrics())({"type": "http", "method": "SMITH", "headers": []}, ignore, ignore))
    assert [record.fields["method"] for record in caplog.records] == ["other"]  # type: ignore[attr-defined]


def test_the_log_of_an_exception_has_its_place_but_not_its_message() -> None:
    try:
        raise ValueError("Smith, John")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "broke", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "Smith" not in line
    assert json.loads(line)["exception"] == "ValueError"
    assert "test_privacy.py" in json.loads(line)["at"][-1]
