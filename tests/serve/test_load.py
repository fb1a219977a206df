"""More than the server can do: it says so at once, keeps what it promised, and recovers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime import image
from pocketdx_serve import engine
from pocketdx_serve.errors import ServeError
from pocketdx_serve.server import GATHER_BYTES
from pocketdx_serve.settings import Settings
from raw_http import diagnose_head
from tests_wait import wait_for

Serve = Callable[..., Any]
Install = Callable[[Any], Any]
Full = Callable[[Any], AbstractContextManager[None]]


def reasons(replies: list[Any]) -> list[str]:
    return [reply.json().get("reason", "ok") for reply in replies]


def test_a_full_queue_answers_503_with_retry_after_at_once_and_keeps_its_promises(
    serve: Serve, full: Full, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=2, max_images=2)
    with full(live):
        started = time.monotonic()
        reply = live.post("/v1/diagnose", jpeg)
        assert time.monotonic() - started < 5
        assert (reply.status_code, reply.json()["reason"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.json()["request_id"] == reply.headers["x-request-id"]
        assert 'pocketdx_rejected_total{reason="overloaded"} 1.0' in live.client.get("/metrics").text
        assert live.client.get("/readyz").status_code == 200, "a full queue is no reason to restart"
    assert live.post("/v1/diagnose", jpeg).status_code == 200


def test_small_images_that_wait_go_through_the_graph_together_and_get_the_answers_they_would_get_alone(
    serve: Serve, gate: Install, make_picture: Any
) -> None:
    live = serve(threads=1, queue=8, max_images=1)
    pictures = [make_picture(seed) for seed in range(5)]
    alone = [live.post("/v1/diagnose", each).json()["results"][0]["probabilities"] for each in pictures]
    assert len({str(each) for each in alone}) > 1
    held = gate(live)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(live.post, "/v1/diagnose", pictures[0])
        assert held.entered.acquire(timeout=5)
        others = [pool.submit(live.post, "/v1/diagnose", each) for each in pictures[1:]]
        wait_for(lambda: live.service.workers.waiting == 4)
        held.opened.set()
        together = [each.result().json()["results"][0]["probabilities"] for each in (first, *others)]
    assert held.count == 2
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_connection_that_was_refused_on_the_wire_goes_on(serve: Serve, full: Full, jpeg: bytes) -> None:
    live = serve(threads=1, queue=1, max_images=1)
    head = diagnose_head(len(jpeg), b"X-Request-ID: mine")
    with live.connect() as sock:
        with full(live):
            sock.sendall(head + jpeg[:100])
            refusal = sock.recv(65536)
            assert refusal.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"x-request-id: mine\r\n" in refusal
            assert b"connection: close" not in refusal
            sock.sendall(jpeg[100:])  # nobody reads it, and it is not taken for the next request
        sock.sendall(head + jpeg)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_thousands_of_requests_in_a_row_on_one_connection_are_refused_one_by_one(
    serve: Serve, gate: Install, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=1, max_images=1)
    held = gate(live)
    count = 3000
    with live.connect() as sock:
        sock.settimeout(20)
        sock.sendall(diagnose_head(len(jpeg)) + jpeg)
        assert held.entered.acquire(timeout=5)
        live.service.workers.capacity = 0
        sender = threading.Thread(target=sock.sendall, args=(diagnose_head(0) * count,))
        sender.start()
        time.sleep(0.2)
        held.opened.set()
        received = b""
        while received.count(b"HTTP/1.1 503") < count:
            chunk = sock.recv(1 << 20)
            assert chunk, "the connection was closed"
            received += chunk
        sender.join()
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert live.client.get("/livez").status_code == 200


def test_a_client_that_asked_first_whether_to_send_is_refused_and_cut_off(
    serve: Serve, full: Full, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=1, max_images=1)
    with live.connect() as sock, full(live):
        sock.sendall(diagnose_head(len(jpeg), b"Expect: 100-continue"))
        sock.settimeout(10)
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close\r\n" in received


def test_a_request_with_more_images_than_there_is_room_takes_no_place(serve: Serve, gate: Install, jpeg: bytes) -> None:
    live = serve(threads=1, queue=2, max_images=3)
    held = gate(live)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(live.post, "/v1/diagnose", jpeg)
        assert held.entered.acquire(timeout=5)
        many = live.client.post("/v1/diagnose", files=[("image", jpeg)] * 3)
        assert (many.status_code, many.json()["reason"]) == (503, "overloaded")
        assert live.service.workers.waiting == 0
        second = pool.submit(live.client.post, "/v1/diagnose", files=[("image", jpeg)] * 2)
        wait_for(lambda: live.service.workers.waiting == 2)
        held.opened.set()
        assert first.result().status_code == second.result().status_code == 200


def test_a_request_past_its_deadline_gets_504_and_its_waiting_work_is_dropped(
    serve: Serve, gate: Install, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=8, max_images=8, deadline=0.3)
    held = gate(live)
    with ThreadPoolExecutor(4) as pool:
        late = [pool.submit(live.post, "/v1/diagnose", jpeg) for _ in range(4)]
        replies = [each.result() for each in late]
    assert [reply.status_code for reply in replies] == [504] * 4
    assert set(reasons(replies)) == {"deadline"}
    assert live.service.workers.waiting == 0
    held.opened.set()
    wait_for(lambda: live.post("/v1/diagnose", jpeg).status_code == 200)
    assert held.count == 2, "only the image already in work and the last one reached the model"


def test_an_image_whose_deadline_passes_while_it_is_decoded_never_reaches_the_model(
    serve: Serve, gate: Install, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = serve(threads=1, deadline=0.2)
    held = gate(live)
    decoding, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slowly(*args: Any, **kwargs: Any) -> Any:
        decoding.set()
        assert go_on.wait(20)
        done.set()
        return image.load(*args, **kwargs)

    monkeypatch.setattr(engine, "load", slowly)
    assert live.post("/v1/diagnose", jpeg).status_code == 504
    assert decoding.is_set()
    held.opened.set()
    go_on.set()
    assert done.wait(5)
    wait_for(lambda: live.post("/v1/diagnose", jpeg).status_code == 200)
    assert held.count == 1, "only the image that was waited for"


def test_a_client_that_goes_away_frees_its_place(serve: Serve, gate: Install, jpeg: bytes) -> None:
    live = serve(threads=1, queue=1, max_images=1)
    held = gate(live)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(live.post, "/v1/diagnose", jpeg)
        assert held.entered.acquire(timeout=5)
        waiting = live.connect()
        waiting.sendall(diagnose_head(len(jpeg)) + jpeg)
        wait_for(lambda: live.service.workers.waiting == 1)
        assert live.post("/v1/diagnose", jpeg).status_code == 503
        waiting.close()
        wait_for(lambda: live.service.workers.waiting == 0)
        wait_for(lambda: live.service.held.total == len(jpeg))
        held.opened.set()
        assert working.result().status_code == 200
    assert held.count == 1
    assert live.service.held.total == 0


def test_uploads_together_are_bounded_and_the_bound_is_free_again_afterwards(
    serve: Serve, gate: Install, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=8, max_images=8, max_bytes=3000, max_held=2 * len(jpeg) + 100)
    assert len(jpeg) < 3000
    held = gate(live)
    with ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(live.post, "/v1/diagnose", jpeg) for _ in range(2)]
        wait_for(lambda: live.service.held.total == 2 * len(jpeg))
        reply = live.post("/v1/diagnose", jpeg)
        assert (reply.status_code, reply.json()["reason"]) == (503, "overloaded")
        held.opened.set()
        assert [each.result().status_code for each in accepted] == [200, 200]
    assert live.service.held.total == 0


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_large_body_is_put_together_from_whatever_pieces_it_comes_in(serve: Serve, pause: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1500, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    data = file.getvalue()
    assert len(data) > GATHER_BYTES
    live = serve()
    whole = live.post("/v1/diagnose", data).json()
    size = 700_001 if pause else 9_973
    with live.connect() as sock:
        sock.sendall(diagnose_head(len(data)))
        for start in range(0, len(data), size):
            sock.sendall(data[start : start + size])
            time.sleep(pause)
        head, _, body = sock.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK"), head
    assert json.loads(body) == whole
    assert live.service.held.total == 0


def test_a_large_body_that_stops_half_way_gets_408_and_frees_what_it_held(serve: Serve) -> None:
    live = serve(read_timeout=0.3)
    with live.connect() as sock:
        sock.sendall(diagnose_head(10_000_000) + b"x" * 5_000_000)
        wait_for(lambda: live.service.held.total == 5_000_000)
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert live.service.held.total == 0


def test_a_body_that_stops_coming_gets_408(serve: Serve) -> None:
    live = serve(read_timeout=0.2)
    with live.connect() as sock:
        sock.sendall(diagnose_head(100) + b"abc")
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert live.service.held.total == 0


def test_a_body_that_trickles_gets_408_though_it_never_stops(serve: Serve) -> None:
    live = serve(read_timeout=0.3)
    started = time.monotonic()
    with live.connect() as sock:
        sock.sendall(diagnose_head(100))
        sock.settimeout(0.05)
        answer = b""
        while not answer:
            assert time.monotonic() - started < 30, "the trickle was never cut off"
            sock.sendall(b"x")
            try:
                answer = sock.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 "), answer


def test_a_connection_that_never_sends_a_header_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, jpeg: bytes
) -> None:
    monkeypatch.setattr("pocketdx_serve.server.HEADER_TIMEOUT", 0.2)
    live = serve()
    with live.connect() as silent, live.connect() as dripping:
        dripping.sendall(b"POST /v1/diag")
        assert silent.recv(10) == b""
        assert dripping.recv(10) == b""


def test_many_idle_connections_do_not_stop_the_next_request(serve: Serve, jpeg: bytes) -> None:
    live = serve()
    idle = [live.connect() for _ in range(256)]
    try:
        for sock in idle:
            sock.sendall(b"POST /v1/diagnose HTTP/1.1\r\nHost: x\r\n")
        assert live.post("/v1/diagnose", jpeg).status_code == 200
    finally:
        for sock in idle:
            sock.close()


def test_a_server_whose_workers_are_all_stuck_is_not_alive(serve: Serve, gate: Install, jpeg: bytes) -> None:
    live = serve(threads=1, deadline=0.1)
    held = gate(live)
    assert live.client.get("/livez").status_code == 200
    assert live.post("/v1/diagnose", jpeg).status_code == 504
    wait_for(lambda: live.client.get("/livez").status_code == 503)
    assert live.client.get("/livez").json()["reason"] == "stalled"
    assert live.client.get("/readyz").json()["reason"] == "stalled"
    held.opened.set()
    wait_for(lambda: live.client.get("/livez").status_code == 200)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"threads": 0}, "threads"),
        ({"queue": -1}, "queue"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"read_timeout": float("inf")}, "read_timeout"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 10, "max_held": 9}, "max_held"),
        ({"threads": 1, "queue": 2, "max_images": 4}, "max_images"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ServeError, match=f"^{names} = "):
        Settings(**settings)


def test_of_many_that_arrive_at_the_same_moment_no_more_are_let_in_than_have_a_place(
    serve: Serve, gate: Install, jpeg: bytes
) -> None:
    live = serve(threads=1, queue=2, max_images=1)
    held = gate(live)
    with ExitStack() as stack:
        socks = [stack.enter_context(live.connect()) for _ in range(40)]
        for sock in socks:
            sock.sendall(diagnose_head(len(jpeg)) + jpeg)
        wait_for(lambda: live.service.workers.room == 0)
        held.opened.set()
        for sock in socks:
            sock.settimeout(10)
        replies = [sock.recv(65536) for sock in socks]
    statuses = [int(reply[9:12]) for reply in replies]
    assert set(statuses) == {200, 503}
    assert held.count <= statuses.count(200)
    metrics = live.client.get("/metrics").text
    assert f'pocketdx_rejected_total{{reason="overloaded"}} {statuses.count(503)}.0' in metrics
    # On the wire, not by the app: no such refusal has the header that uvicorn adds to what the app sends.
    assert all(b"\r\ndate: " not in reply for reply in replies if reply[9:12] == b"503")
