"""The model file and its golden inputs for devices that run it themselves, and the files of the web page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketdx_runtime.model import Model

Serve = Callable[..., Any]


@pytest.fixture
def bundle(tmp_path: Path, tiny_model: Any, write_golden: Any) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model.tiny_model())
    write_golden(tmp_path / "golden.npz", Model(path))
    return path


def test_the_model_file_arrives_whole_with_its_digest_as_validator(live: Any, tiny_model_path: Path) -> None:
    reply = live.client.get("/v1/model/file")
    assert reply.content == tiny_model_path.read_bytes()
    assert reply.headers["etag"] == f'"{hashlib.sha256(reply.content).hexdigest()}"'
    assert reply.headers["etag"] == f'"{live.client.get("/v1/model").json()["digest"]}"'
    assert reply.headers["cache-control"] == "private, no-cache"
    head = live.client.head("/v1/model/file")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(reply.content)))
    again = live.client.get("/v1/model/file", headers={"If-None-Match": f'"x", {reply.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")


def test_a_broken_download_goes_on_where_it_stopped(live: Any, tiny_model_path: Path) -> None:
    data = tiny_model_path.read_bytes()
    for asked, expected in (("bytes=100-", data[100:]), ("bytes=0-9", data[:10]), ("bytes=-7", data[-7:])):
        reply = live.client.get("/v1/model/file", headers={"Range": asked})
        assert (reply.status_code, reply.content) == (206, expected)
        assert reply.headers["content-range"].endswith(f"/{len(data)}")
    other = live.client.get("/v1/model/file", headers={"Range": "bytes=5-", "If-Range": '"another file"'})
    assert (other.status_code, other.content) == (200, data), "a part of another file would spoil it"
    for ignored in ("bytes=5-2", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=a-"):
        assert live.client.get("/v1/model/file", headers={"Range": ignored}).status_code == 200
    past = live.client.get("/v1/model/file", headers={"Range": f"bytes={len(data)}-"})
    assert (past.status_code, past.json()["reason"]) == (416, "range")
    assert past.headers["content-range"] == f"bytes */{len(data)}"


def test_golden_inputs_are_offered_where_they_lie_beside_the_model(serve: Serve, live: Any, bundle: Path) -> None:
    reply = serve(model=Model(bundle, threads=1)).client.get("/v1/model/golden")
    assert reply.content == bundle.with_name("golden.npz").read_bytes()
    missing = live.client.get("/v1/model/golden")
    assert (missing.status_code, missing.json()["reason"]) == (404, "file-missing")


def test_a_model_that_does_not_give_the_golden_answers_never_gets_ready(
    serve: Serve, bundle: Path, write_golden: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_golden(bundle.with_name("golden.npz"), Model(bundle), shift=0.5)
    live = serve(model=Model(bundle, threads=1), ready=False)
    while live.client.get("/readyz").json()["reason"] == "starting":
        pass
    assert live.client.get("/readyz").json()["reason"] == "failed"
    assert live.client.get("/v1/model/file").status_code == 503, "no device should run it either"
    assert "logits differ by 0.5" in caplog.text


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    (folder / "sw.js").write_text("// worker")
    (folder / "assets/ort-1a2b.wasm").write_bytes(b"\0asm plain")
    (folder / "assets/ort-1a2b.wasm.br").write_bytes(b"packed")
    (folder / ".secret").write_text("no")
    (tmp_path / "outside.txt").write_text("no")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    return folder


def test_the_page_is_served_where_it_was_built_with_headers_that_let_wasm_run(serve: Serve, web: Path) -> None:
    client = serve(web=web).client
    page = client.get("/")
    assert page.text == (web / "index.html").read_text()
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self' 'wasm-unsafe-eval';" in page.headers["content-security-policy"]
    assert "'unsafe-inline'" not in page.headers["content-security-policy"]
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert page.headers["cross-origin-embedder-policy"] == "require-corp"
    assert page.headers["cache-control"] == "no-cache"
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    assert client.get("/sw.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/docs").status_code == 200


def test_assets_are_cached_for_good_and_sent_compressed_to_who_takes_it(serve: Serve, web: Path) -> None:
    client = serve(web=web).client
    plain = client.get("/assets/ort-1a2b.wasm", headers={"Accept-Encoding": "identity"})
    assert (plain.content, plain.headers["content-type"]) == (b"\0asm plain", "application/wasm")
    assert "immutable" in plain.headers["cache-control"]
    with client.stream("GET", "/assets/ort-1a2b.wasm", headers={"Accept-Encoding": "gzip, br"}) as packed:
        assert packed.headers["content-encoding"] == "br"
        assert packed.headers["vary"] == "Accept-Encoding"
        assert b"".join(packed.iter_raw()) == b"packed"
        assert packed.headers["etag"] != plain.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/.secret",
        "/link.txt",
        "/assets/ort-1a2b.wasm.br",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/assets/../../outside.txt",
        "/assets",
    ],
)
def test_nothing_but_the_pages_files_can_be_reached(serve: Serve, web: Path, path: str) -> None:
    live = serve(web=web)
    with live.connect() as sock:  # a client library would tidy the path up
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")
