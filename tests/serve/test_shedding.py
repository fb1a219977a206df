"""Refusals of requests that came whole: as if they had been parsed, and only where nothing about them is unusual."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pocketdx_serve.metrics import Metrics
from pocketdx_serve.shedding import Shedding
from raw_http import diagnose_head

Serve = Callable[..., Any]
Full = Callable[[Any], AbstractContextManager[None]]

BODY = b"\xff\xd8" + b"x" * 100
WHOLE = diagnose_head(len(BODY)) + BODY


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def shedding(metrics: Metrics) -> Shedding:
    return Shedding(metrics, lambda: 0, ["/v1/diagnose", "/v1/embed"])


def test_a_plain_request_is_refused_and_counted(shedding: Shedding, metrics: Metrics) -> None:
    refusal = shedding.refusal_of_whole(WHOLE)
    assert refusal is not None
    assert refusal.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: " in refusal
    assert b'pocketdx_requests_total{route="/v1/diagnose",status="503"} 1.0' in metrics.text()
    assert b'pocketdx_rejected_total{reason="overloaded"} 1.0' in metrics.text()
    assert b'pocketdx_request_seconds_count{route="/v1/diagnose"} 0.0' in metrics.text()


def test_each_refusal_has_an_id_of_its_own_in_header_and_body(shedding: Shedding) -> None:
    refusals = [shedding.refusal_of_whole(WHOLE) for _ in range(3)]
    ids = []
    for refusal in refusals:
        assert refusal is not None
        head, _, body = refusal.partition(b"\r\n\r\n")
        assert int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]) == len(body)
        ids.append(json.loads(body)["request_id"])
        assert b"\r\nx-request-id: " + ids[-1].encode() + b"\r\n" in head + b"\r\n"
    assert len(set(ids)) == 3


def test_a_head_that_is_known_does_not_speak_for_what_follows_it(shedding: Shedding) -> None:
    assert shedding.refusal_of_whole(WHOLE) is not None
    assert shedding.refusal_of_whole(WHOLE[:-1]) is None
    assert shedding.refusal_of_whole(WHOLE + b"P") is None
    assert shedding.refusal_of_whole(WHOLE) is not None


def test_of_heads_only_so_many_are_known_and_none_is_kept(shedding: Shedding) -> None:
    for number in range(2000):
        head = diagnose_head(len(BODY), b"Authorization: Bearer secret-%d" % number)
        assert shedding.refusal_of_whole(head + BODY) is not None
    assert len(shedding._known) <= 256
    assert "secret" not in repr(vars(shedding))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:-1],
        WHOLE[:20],
        WHOLE + b"P",
        WHOLE * 2,
        WHOLE.replace(b"POST", b"GET"),
        WHOLE.replace(b"/v1/diagnose", b"/v1/model"),
        WHOLE.replace(b"/v1/diagnose", b"/v1/diagnose?top=1"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        WHOLE.replace(b"Content-Length: 102", b"Content-Length: 1e2"),
        WHOLE.replace(b"Content-Length: 102", b"Content-Length: +102"),
        WHOLE.replace(b"Content-Length: 102", b"Content-Length:"),
        WHOLE.replace(b"Content-Length: 102", b"X-Content-Length: 102"),
        WHOLE.replace(b"Host: x", b"Host: x\r\n folded"),
        WHOLE.replace(b"Host: x", b"Host: x\n"),
        WHOLE.replace(b"Host: x", b"Host: x\r"),
        *(
            diagnose_head(len(BODY), line) + BODY
            for line in (
                b"Content-Length: 102",
                b"Expect: 100-continue",
                b"Connection: close",
                b"Transfer-Encoding: chunked",
                b"Upgrade: websocket",
                b"x-request-id: mine",
                b"X: " + b"y" * 5000,
            )
        ),
    ],
)
def test_whatever_is_not_plain_is_left_to_the_parser(shedding: Shedding, data: bytes) -> None:
    assert shedding.refusal_of_whole(data) is None


def without_id(reply: bytes) -> list[bytes]:
    """Header lines and body but for the request's id."""
    head, _, body = reply.partition(b"\r\n\r\n")
    identity = next(line for line in head.split(b"\r\n") if line.startswith(b"x-request-id: ")).split()[1]
    return [*sorted(head.replace(identity, b"").split(b"\r\n")), body.replace(identity, b"")]


def test_it_says_what_a_parsed_request_is_told_and_the_connection_goes_on(
    serve: Serve, full: Full, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=1, max_images=1)
    with live.connect() as sock:
        with full(live):
            replies = []
            for more in ((), (b"Connection: keep-alive",), ()):
                sock.sendall(diagnose_head(len(jpeg), *more) + jpeg)
                replies.append(without_id(sock.recv(65536)))
            assert replies[0] == replies[1] == replies[2]
        sock.sendall(diagnose_head(len(jpeg)) + jpeg)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_that_looks_like_a_request_is_a_body(serve: Serve, full: Full) -> None:
    live = serve(threads=1, queue=1, max_images=1)
    with live.connect() as sock, full(live):
        sock.sendall(diagnose_head(len(WHOLE)))
        received = sock.recv(65536)
        sock.sendall(WHOLE)
        sock.sendall(WHOLE)
        sock.settimeout(5)
        while received.count(b"HTTP/1.1 503") < 2:
            received += sock.recv(65536)
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(65536)


def test_a_connection_in_use_is_not_idle_because_all_is_refused(
    serve: Serve, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketdx_serve.server.HEADER_TIMEOUT", 0.3)
    live = serve(threads=1, queue=1, max_images=1)
    with live.connect() as sock, full(live):
        sock.settimeout(5)
        for _ in range(15):
            sock.sendall(WHOLE)
            assert sock.recv(65536).startswith(b"HTTP/1.1 503 ")
            time.sleep(0.1)
        assert sock.recv(65536) == b"", "and once it is idle it is closed"
