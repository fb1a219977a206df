"""Images stay in memory: nothing of them, nor of their names, reaches a disk or a log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketdx_serve.envelope import Envelope
from pocketdx_serve.logs import JsonFormatter, PlainFormatter, Unhurried, log_request
from pocketdx_serve.metrics import Metrics
from tests_wait import wait_for


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
        asyncio.run(
            Envelope(app, Metrics())({"type": "http", "method": "SMITH", "path": "/", "headers": []}, ignore, ignore)
        )
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


def test_lines_of_requests_are_written_together_and_every_other_at_once_in_order() -> None:
    out = io.StringIO()
    handler = Unhurried(out)
    handler.setFormatter(PlainFormatter())
    with handler._pen:  # the thread that writes has to wait
        handler.request({"n": 1})
        handler.request({"n": 2})
        assert out.getvalue() == ""
    handler.handle(logging.makeLogRecord({"msg": "ready", "levelno": logging.INFO, "fields": {"n": 3}}))
    assert out.getvalue() == "request n=1\nrequest n=2\nready n=3\n"
    handler.request({"n": 4})
    wait_for(lambda: out.getvalue().endswith("request n=4\n"))


def test_a_handler_that_was_added_hears_of_requests_too() -> None:
    log, out, other = logging.Logger("x"), io.StringIO(), io.StringIO()
    handler = Unhurried(out)
    handler.setFormatter(PlainFormatter())
    log.addHandler(handler)
    log_request(log, {"n": 1})
    log.addHandler(logging.StreamHandler(other))
    log_request(log, {"n": 2})
    assert out.getvalue() == "request n=1\nrequest n=2\n"
    assert other.getvalue() == "request\n"


def test_no_line_of_many_threads_is_lost() -> None:
    out = io.StringIO()
    handler = Unhurried(out)
    handler.setFormatter(logging.Formatter("%(message)s"))

    def emit(_n: int) -> None:
        handler.request({})
        handler.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(emit, range(2000)))
    wait_for(lambda: out.getvalue().count("\n") == 2000)
