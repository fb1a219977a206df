"""Who may ask, how often, and from which pages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketdx_serve.errors import ServeError
from pocketdx_serve.keys import KeyRing
from pocketdx_serve.problems import Problem
from pocketdx_serve.rates import Rates
from tests_wait import wait_for

Serve = Callable[..., Any]
WARD, LAB = "w" * 32, "l" * 32


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"# comment\nward {WARD}\n\n{LAB}\n")
    return path


def test_a_known_key_is_let_in_by_either_header_and_nobody_else_is(serve: Serve, keys: Path, jpeg: bytes) -> None:
    live = serve(keys=KeyRing(keys))
    assert live.post("/v1/diagnose", jpeg, **bearer(WARD)).status_code == 200
    assert live.post("/v1/diagnose", jpeg, **{"X-API-Key": LAB}).status_code == 200
    for headers in (
        {},
        bearer("x" * 32),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {WARD}"},
        {"X-API-Key": WARD + "x"},
    ):
        reply = live.post("/v1/diagnose", jpeg, **headers)
        assert (reply.status_code, reply.json()["reason"]) == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"


def test_every_address_needs_the_key_but_health_metrics_and_documentation(serve: Serve, keys: Path) -> None:
    live = serve(keys=KeyRing(keys))
    document = live.client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    free = set()
    for path, operations in document["paths"].items():
        for method in operations:
            reply = live.client.request(method.upper(), path.replace("{name}", "tiny"))
            if reply.status_code != 401:
                assert reply.status_code == 200, (path, reply.text)
                assert "security" not in operations[method]
                free.add(path)
            else:
                assert operations[method]["security"]
    assert free == {
        "/livez",
        "/readyz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}/ready",
    }


def test_the_log_names_the_holder_and_never_the_key(
    serve: Serve, keys: Path, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    live = serve(keys=KeyRing(keys))
    with caplog.at_level(logging.INFO, "pocketdx.serve"):
        live.post("/v1/diagnose", jpeg, **bearer(WARD))
        wait_for(lambda: any("'key': 'ward'" in str(getattr(each, "fields", "")) for each in caplog.records))
    assert WARD not in "".join(str(each.__dict__) for each in caplog.records)
    assert WARD not in repr(vars(live.service.keys)), "only hashes are kept"


def test_keys_are_rotated_by_changing_the_file_and_a_bad_file_changes_nothing(serve: Serve, keys: Path) -> None:
    live = serve(keys=KeyRing(keys), reload_interval=0.02)
    fresh = "f" * 32

    def status(key: str) -> int:
        return int(live.client.get("/v1/model", headers=bearer(key)).status_code)

    keys.write_text(f"ward {fresh}\n")
    wait_for(lambda: status(fresh) == 200)
    assert status(WARD) == 401
    keys.write_text("short\n")
    wait_for(lambda: 'pocketdx_reloads_total{outcome="failed",what="keys"} 1.0' in live.client.get("/metrics").text)
    assert status(fresh) == 200


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "no key in it"),
        ("# nothing\n", "no key in it"),
        ("short", "key 1: shorter than 16"),
        (f"ward {WARD}\nward {LAB}", "key 2: its name or key is there twice"),
        (f"a {WARD}\nb {WARD}", "key 2: its name or key is there twice"),
        (f"ward {WARD} extra", "key 1: write NAME KEY"),
        (f"w/ard {WARD}", "key 1: a name has"),
    ],
)
def test_a_bad_file_of_keys_is_named_without_giving_a_key_away(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ServeError, match=names) as caught:
        KeyRing(path)
    assert WARD not in str(caught.value)


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETDX_API_KEYS", f"ward {WARD}, {LAB}")
    ring = KeyRing.chosen(None)
    assert ring is not None
    assert ring.who(WARD) == "ward"
    assert str(ring.who(LAB)).startswith("key-")
    monkeypatch.delenv("POCKETDX_API_KEYS")
    assert KeyRing.chosen(None) is None


def test_a_key_that_sends_too_much_gets_429_and_others_do_not(serve: Serve, keys: Path, jpeg: bytes) -> None:
    live = serve(keys=KeyRing(keys), rate=0.01, max_images=2)
    both = [("image", jpeg)] * 2
    assert live.client.post("/v1/diagnose", files=both, headers=bearer(WARD)).status_code == 200
    reply = live.post("/v1/diagnose", jpeg, **bearer(WARD))
    assert (reply.status_code, reply.json()["reason"]) == (429, "rate-limited")
    assert int(reply.headers["retry-after"]) > 1
    assert live.post("/v1/diagnose", jpeg, **bearer(LAB)).status_code == 200
    assert live.client.get("/v1/model", headers=bearer(WARD)).status_code == 200, "only images are counted"


def test_a_bucket_fills_again_and_never_over_its_brim() -> None:
    now = 0.0
    rates = Rates(rate=2, burst=4, clock=lambda: now)
    for _ in range(4):
        rates.take("a")
    with pytest.raises(Problem) as caught:
        rates.take("a")
    assert caught.value.headers["Retry-After"] == "1"
    now = 0.5
    rates.take("a")
    now = 1000.0
    rates.take("a")
    rates.owe("a", 15)
    with pytest.raises(Problem) as caught:
        rates.take("a")
    assert caught.value.headers["Retry-After"] == "7", "1 - (4 - 16) tokens at 2 a second, rounded up"


def test_pages_of_an_origin_that_was_named_may_ask_and_others_not(serve: Serve, jpeg: bytes) -> None:
    live = serve(cors=["https://clinic.example"])
    asked = {
        "Origin": "https://clinic.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    assert live.client.options("/v1/diagnose", headers=asked).status_code == 200
    reply = live.post("/v1/diagnose", jpeg, Origin="https://clinic.example")
    assert reply.headers["access-control-allow-origin"] == "https://clinic.example"
    other = live.post("/v1/diagnose", jpeg, Origin="https://elsewhere.example")
    assert "access-control-allow-origin" not in other.headers


def test_metrics_count_what_happened_and_where_the_time_went(serve: Serve, jpeg: bytes) -> None:
    live = serve()
    live.post("/v1/diagnose", jpeg)
    live.post("/v1/diagnose", b"hello")
    live.client.get("/smith")
    text = ""

    def counted() -> bool:
        nonlocal text
        text = live.client.get("/metrics").text
        return 'route="unknown"' in text

    wait_for(counted)
    assert 'pocketdx_requests_total{route="/v1/diagnose",status="200"} 1.0' in text
    assert 'pocketdx_rejected_total{reason="not-an-image"} 1.0' in text
    for name in ("queue", "decode", "inference"):
        assert f'pocketdx_{name}_seconds_count{{model="tiny"}} 1.0' in text
    assert "pocketdx_queue_depth 0.0" in text
    assert "pocketdx_in_flight 1.0" in text, "the one that asks"
    assert "process_resident_memory_bytes" in text
    assert f'digest="{live.client.get("/v1/model").json()["digest"]}"' in text
    assert "smith" not in text


def test_metrics_can_have_an_address_of_their_own(serve: Serve, jpeg: bytes) -> None:
    import httpx

    live = serve(metrics=False)
    assert live.client.get("/metrics").status_code == 404
    port = live.service.metrics.serve("127.0.0.1", 0)
    assert "pocketdx_queue_depth" in httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    with pytest.raises(ServeError, match=f"--metrics-port {port}"):
        live.service.metrics.serve("127.0.0.1", port)
