"""Breaks of the event loop while the server is full: requests gather in them, connections do not wait for them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from pocketdx_serve.breaks import Breaks
from raw_http import diagnose_head

Serve = Callable[..., Any]
Full = Callable[[Any], AbstractContextManager[None]]

WHOLE = diagnose_head(4) + b"\xff\xd8xx"
IN_PIECES = diagnose_head(4, b"Connection: keep-alive") + b"\xff\xd8xx"
"""One that is told by its bytes, and one that is parsed."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The breaks that were taken, which take no time."""
    lengths: list[float] = []
    monkeypatch.setattr("pocketdx_serve.breaks._sleep", lengths.append)
    return lengths


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_of_a_hundred_refusals_in_a_turn_comes_one_break(taken: list[float]) -> None:
    async def refuse() -> None:
        breaks = Breaks(lambda: True)
        for count in (1, 2):
            for _ in range(100):
                breaks.soon()
            assert len(taken) == count - 1
            await turns()
            assert len(taken) == count

    asyncio.run(refuse())


def test_no_break_while_a_thread_may_run_out_of_work(taken: list[float]) -> None:
    async def refuse(*, supplied: bool) -> None:
        breaks = Breaks(lambda: supplied)
        breaks.soon()
        await turns()

    asyncio.run(refuse(supplied=False))
    assert taken == []
    asyncio.run(refuse(supplied=True))
    assert len(taken) == 1


def test_a_break_waits_until_connections_have_ceased_to_come(taken: list[float]) -> None:
    async def refuse() -> None:
        breaks = Breaks(lambda: True)
        breaks.soon()
        for _ in range(5):
            breaks.connected()
            await turns(2)
            assert taken == []
        await turns()
        assert len(taken) == 1

    asyncio.run(refuse())


@pytest.mark.parametrize("request_bytes", [WHOLE, IN_PIECES])
@pytest.mark.parametrize(("queue", "expected"), [(8, True), (1, False)])
def test_a_full_server_refuses_again_after_a_break_if_enough_waits_for_its_threads(
    serve: Serve, full: Full, monkeypatch: pytest.MonkeyPatch, request_bytes: bytes, queue: int, expected: bool
) -> None:
    monkeypatch.setattr("pocketdx_serve.breaks.BREAK_SECONDS", 0.4)
    live = serve(threads=1, queue=queue, max_images=1)
    with live.connect() as sock, full(live):
        started = time.monotonic()
        for _ in range(6):
            sock.sendall(request_bytes)
            assert sock.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert (time.monotonic() - started >= 3 * 0.4) is expected


def test_clients_that_come_while_it_takes_breaks_are_not_let_in_one_a_break(
    serve: Serve, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketdx_serve.breaks.BREAK_SECONDS", 0.3)
    live = serve(threads=1, queue=8, max_images=1)
    with full(live), ExitStack() as stack:
        host, port = live.url.removeprefix("http://").split(":")
        started = time.monotonic()
        socks = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(100)]
        for sock in socks:
            sock.sendall(WHOLE)
        assert all(sock.recv(65536).startswith(b"HTTP/1.1 503 ") for sock in socks)
        assert time.monotonic() - started < 100 * 0.3 / 3
