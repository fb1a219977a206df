"""A request that came as a whole takes a shorter way, and leaves as little behind."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from pocketdx_runtime.model import Model
from pocketdx_serve.body import Upload
from raw_http import diagnose_head
from tests_wait import wait_for

Serve = Callable[..., Any]


def uncollected(kind: type) -> list[Any]:
    return [each for each in gc.get_objects() if type(each) is kind]


def test_a_body_that_came_as_a_whole_is_not_waited_for_and_one_in_pieces_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, jpeg: bytes
) -> None:
    waited: list[int] = []
    read_on = Upload._read_on

    async def counted(upload: Upload, take: Any) -> None:
        waited.append(1)
        await read_on(upload, take)

    monkeypatch.setattr(Upload, "_read_on", counted)
    live = serve()
    head = diagnose_head(len(jpeg))
    with live.connect() as sock:
        for pause, expected in ((0.0, 0), (0.3, 1), (0.0, 1)):
            if pause:
                sock.sendall(head + jpeg[:100])
                time.sleep(pause)
                sock.sendall(jpeg[100:])
            else:
                sock.sendall(head + jpeg)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert len(waited) == expected


def test_many_requests_in_one_go_get_their_own_answers_in_order(
    serve: Serve, model: Model, make_picture: Callable[..., bytes]
) -> None:
    pictures = [make_picture(seed) for seed in range(8)]
    expected = [each.probability for each in model.diagnose(pictures)]
    assert len(set(expected)) == len(expected)
    live = serve()
    received = b""
    with live.connect() as sock:
        sock.sendall(b"".join(diagnose_head(len(each)) + each for each in pictures))
        while received.count(b'"probability":') < len(pictures):
            data = sock.recv(65536)
            assert data, "closed"
            received += data
    found = [float(each) for each in re.findall(rb'"probability":([0-9.e-]+)', received)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_answered_request_leaves_nothing_for_the_garbage_collector(serve: Serve, jpeg: bytes) -> None:
    live = serve()
    with live.connect() as sock:

        def ask() -> None:
            sock.sendall(diagnose_head(len(jpeg)) + jpeg)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")

        ask()
        before = len(uncollected(RequestResponseCycle))
        gc.disable()
        try:
            for _ in range(20):
                ask()
            wait_for(lambda: len(uncollected(RequestResponseCycle)) <= before + 1, seconds=2)
        finally:
            gc.enable()
