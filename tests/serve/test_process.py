"""`pocketdx serve` as a process: starting, refusing to start, and stopping."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocketdx_runtime.model import Model
from pocketdx_serve.server import listen
from raw_http import diagnose_head
from tests_wait import wait_for

Start = Callable[..., Any]
Call = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = (sys.executable, "-c", "from pocketdx_runtime.cli import main; main()")


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_it_gets_ready_soon_and_answers_like_the_model_in_process(
    process: Start, tiny_model_path: Path, jpeg: bytes
) -> None:
    server = process()
    reply = httpx.post(f"{server.url}/v1/diagnose", files={"image": jpeg}, trust_env=False)
    assert reply.json()["results"][0]["label"] == Model(tiny_model_path).diagnose([jpeg])[0].label
    assert [line["event"] for line in server.log[:2]] == ["listening", "ready"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(process: Start, stop: signal.Signals) -> None:
    server = process()
    server.popen.send_signal(stop)
    assert server.finish() == 0
    assert server.log[-1]["event"] == "stopped"


def test_sigterm_lets_a_request_on_its_way_finish(process: Start, jpeg: bytes) -> None:
    server = process()
    with connect(server.url) as sock, connect(server.url) as watcher:
        sock.sendall(diagnose_head(len(jpeg)) + jpeg[:100])
        time.sleep(0.2)
        server.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/livez", trust_env=False)
        assert watcher.recv(10) == b"", "an idle connection is closed"
        assert server.popen.poll() is None, "it waits for the request"
        sock.sendall(jpeg[100:])
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert server.finish() == 0


def test_sigterm_lets_everything_in_the_queue_finish(process: Start, make_picture: Any) -> None:
    server = process("--threads", "1")
    slow = make_picture(size=(2500, 2000), kind="PNG")
    with ThreadPoolExecutor(6) as pool, httpx.Client(trust_env=False, timeout=30) as client:
        waiting = [pool.submit(client.post, f"{server.url}/v1/diagnose", files={"image": slow}) for _ in range(6)]
        time.sleep(0.3)
        server.popen.send_signal(signal.SIGTERM)
        assert [each.result().status_code for each in waiting] == [200] * 6
    assert server.finish() == 0
    answered = [line for line in server.log if line["event"] == "request"]
    assert len(answered) == 6


def test_overload_of_a_real_process_gives_only_200_and_503(process: Start, make_picture: Any) -> None:
    server = process("--threads", "1", "--queue", "1", "--max-images", "1")
    slow = make_picture(size=(3000, 2000))
    with httpx.Client(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=32)) as client:
        with ThreadPoolExecutor(32) as pool:
            replies = list(
                pool.map(lambda _n: client.post(f"{server.url}/v1/diagnose", files={"image": slow}), range(64))
            )
        codes = [reply.status_code for reply in replies]
        assert set(codes) == {200, 503}, codes
        assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
        assert client.post(f"{server.url}/v1/diagnose", files={"image": slow}).status_code == 200


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


def test_a_missing_model_is_one_line_and_status_2(pocketdx: Call, tmp_path: Path) -> None:
    assert "nowhere.onnx" in refused(pocketdx("serve", str(tmp_path / "nowhere.onnx")))


def test_a_corrupt_model_is_one_line_and_status_2(pocketdx: Call, tmp_path: Path, tiny_model_path: Path) -> None:
    for name, data in (("cut.onnx", tiny_model_path.read_bytes()[:-500]), ("text.onnx", b"hello")):
        path = tmp_path / name
        path.write_bytes(data)
        assert name in refused(pocketdx("serve", str(path), "--port", "0"))


def test_a_port_in_use_is_one_line_and_status_2(pocketdx: Call, tiny_model_path: Path) -> None:
    with listen("127.0.0.1", 0) as sock:
        port = str(sock.getsockname()[1])
        line = refused(pocketdx("serve", str(tiny_model_path), "--port", port))
    assert port in line
    assert "--port" in line


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine_is_one_line_and_status_2(
    pocketdx: Call, tiny_model_path: Path, host: str
) -> None:
    assert host in refused(pocketdx("serve", str(tiny_model_path), "--host", host))


def test_a_setting_out_of_range_is_status_2(pocketdx: Call, tiny_model_path: Path) -> None:
    assert "max_images" in refused(pocketdx("serve", str(tiny_model_path), "--queue", "0"))
    assert pocketdx("serve", str(tiny_model_path), "--port", "70000").returncode == 2


def test_the_commands_module_imports_neither_fastapi_nor_the_model() -> None:
    code = (
        "import sys, pocketdx_serve.commands;"
        "print([m for m in ('fastapi', 'uvicorn', 'starlette', 'pydantic', 'onnxruntime', 'numpy', 'PIL')"
        " if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_factory_has_no_side_effects_at_import() -> None:
    code = (
        "import threading, sys, pocketdx_serve.app, pocketdx_serve.server;"
        "assert threading.active_count() == 1; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_several_models_are_served_and_drained_together(
    process: Start, tiny_model: Any, tmp_path: Path, jpeg: bytes
) -> None:
    paths = []
    for seed, name in enumerate(("a.onnx", "b.onnx")):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(tiny_model.tiny_model(seed=seed))
    server = process(argv=[*COMMAND, "serve", str(paths[0]), f"second={paths[1]}", "--port", "0"])
    names = [each["name"] for each in httpx.get(f"{server.url}/v1/models", trust_env=False).json()["models"]]
    assert names == ["a", "second"]
    with connect(server.url) as first, connect(server.url) as second:
        for sock, query in ((first, b""), (second, b"?model=second")):
            sock.sendall(diagnose_head(len(jpeg)).replace(b"/diagnose", b"/diagnose" + query) + jpeg[:100])
        time.sleep(0.2)
        server.popen.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        for sock in (first, second):
            sock.sendall(jpeg[100:])
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert server.finish() == 0


def test_sighup_takes_a_changed_file_up_at_once(process: Start, tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_model.tiny_model(seed=1))
    server = process(argv=[*COMMAND, "serve", str(path), "--port", "0"])
    (tmp_path / "new").write_bytes(tiny_model.tiny_model(seed=2))
    (tmp_path / "new").replace(path)
    server.popen.send_signal(signal.SIGHUP)
    digest = Model(path).digest
    wait_for(lambda: httpx.get(f"{server.url}/v1/model", trust_env=False).json()["digest"] == digest)
    server.popen.send_signal(signal.SIGTERM)
    assert server.finish() == 0
    assert [line["event"] for line in server.log].count("ready") == 2


def test_keys_and_metrics_port_work_from_the_command_line(process: Start, tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "keys").write_text("ward " + "w" * 32)
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    server = process("--keys", str(tmp_path / "keys"), "--rate", "5", "--metrics-port", str(port))
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.post("/v1/diagnose", files={"image": jpeg}).status_code == 401
        me = {"Authorization": "Bearer " + "w" * 32}
        assert client.post("/v1/diagnose", files={"image": jpeg}, headers=me).status_code == 200
        assert client.get("/metrics").status_code == 404
        assert 'status="401"' in client.get(f"http://127.0.0.1:{port}/metrics").text


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--rate", "5"], "--keys FILE"),
        (["--keys", "nowhere.txt"], "nowhere.txt"),
        (["--audit", "log"], "POCKETDX_AUDIT_KEY"),
        (["--audit-key", "k"], "--audit"),
        (["--metrics-host", "127.0.0.1"], "--metrics-port"),
        (["--cors", "https://clinic.example/page"], "https://clinic.example/page"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line_and_status_2(
    pocketdx: Call, tiny_model_path: Path, tmp_path: Path, options: list[str], names: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POCKETDX_AUDIT_KEY", raising=False)
    assert names in refused(pocketdx("serve", str(tiny_model_path), "--port", "0", *options))


def test_two_models_of_one_name_are_refused_with_a_remedy(pocketdx: Call, tiny_model_path: Path) -> None:
    line = refused(pocketdx("serve", str(tiny_model_path), str(tiny_model_path), "--port", "0"))
    assert "two models named tiny" in line
    assert "other=" in line
