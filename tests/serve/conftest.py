"""A real server on a loopback port: in this process, to look inside, or as `pocketdx serve`, to send it signals."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.model import Model
from pocketdx_serve.app import create_app
from pocketdx_serve.engine import Engine
from pocketdx_serve.server import listen, server_for, url_of
from pocketdx_serve.service import Service
from pocketdx_serve.settings import Settings
from tests_wait import wait_for


@dataclass
class Live:
    """An app that is being served from a thread of this process."""

    url: str
    service: Service
    client: httpx.Client

    @property
    def engine(self) -> Engine:
        return self.service.models.default.get().engine

    def post(self, path: str, data: bytes, content_type: str = "image/jpeg", **headers: str) -> httpx.Response:
        return self.client.post(path, content=data, headers={"Content-Type": content_type, **headers})

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)


Serve = Callable[..., Live]
APP_OPTIONS = {"keys", "audit", "cors", "metrics", "web"}


@contextmanager
def _live(model: Any, settings: Settings, **options: Any) -> Iterator[Live]:
    app = create_app(model, settings, **options)
    sock = listen("127.0.0.1", 0)
    server = server_for(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=url_of(sock), timeout=30, trust_env=False) as client:
            yield Live(url_of(sock), app.state.service, client)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


def _until_ready(live: Live) -> Live:
    end = time.monotonic() + 20
    while live.client.get("/readyz").status_code != 200:
        assert time.monotonic() < end, "the server did not get ready"
        time.sleep(0.01)
    return live


@pytest.fixture(scope="session")
def tiny_model() -> ModuleType:
    """``tests/tiny_model.py``, which makes model files."""
    return _module(Path(__file__).resolve().parents[1] / "tiny_model.py")


@pytest.fixture(scope="session")
def tiny_model_path(tiny_model: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model file."""
    path: Path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    path.write_bytes(tiny_model.tiny_model())
    return path


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model(tiny_model_path: Path) -> Model:
    """The model in this process, to compare the server's answers with."""
    return Model(tiny_model_path, threads=1).load()


@pytest.fixture(scope="session")
def live(tiny_model_path: Path) -> Iterator[Live]:
    """A server with the default settings, shared by tests that leave it as they found it."""
    with _live(Model(tiny_model_path, threads=1), Settings()) as served:
        yield _until_ready(served)


@pytest.fixture
def serve(tiny_model_path: Path) -> Iterator[Serve]:
    """``serve(threads=1, ...)``: a server of the test's own."""
    with ExitStack() as stack:

        def start(*, model: Any = None, ready: bool = True, **settings: Any) -> Live:
            options = {name: settings.pop(name) for name in APP_OPTIONS & set(settings)}
            served = _live(model or Model(tiny_model_path, threads=1), Settings(**settings), **options)
            live = stack.enter_context(served)
            return _until_ready(live) if ready else live

        yield start


@dataclass
class Gate:
    """Holds every image that reaches the model until it is opened, and counts them."""

    inner: Any
    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    count: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, pixels: Any, outputs: Any) -> Any:
        self.count += 1
        self.entered.release()
        assert self.opened.wait(20), "the test forgot to open the gate"
        return self.inner.run(pixels, outputs)


@pytest.fixture
def gate() -> Iterator[Callable[[Live], Gate]]:
    """``gate(live)``: from now on the server's model waits."""
    gates: list[Gate] = []

    def install(live: Live) -> Gate:
        engine = live.engine
        gates.append(Gate(engine.model))
        engine.model = gates[-1]  # type: ignore[assignment]
        return gates[-1]

    yield install
    for each in gates:
        each.opened.set()


@pytest.fixture
def full(gate: Callable[[Live], Gate], jpeg: bytes) -> Callable[[Live], AbstractContextManager[None]]:
    """``with full(live):`` every place of the server is taken; after it, those who took them have their answers."""

    @contextmanager
    def fill(live: Live) -> Iterator[None]:
        held = gate(live)
        places = live.service.workers.capacity
        with ThreadPoolExecutor(places) as pool:
            accepted = [pool.submit(live.post, "/v1/diagnose", jpeg) for _ in range(places)]
            try:
                wait_for(lambda: live.service.workers.room == 0)
                yield
            finally:
                held.opened.set()
            assert [each.result().status_code for each in accepted] == [200] * places

    return fill


def picture(seed: int = 0, size: tuple[int, int] = (96, 64), kind: str = "JPEG") -> bytes:
    """An encoded picture with smooth structure, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return picture()


def golden_inputs(path: Path, model: Model, shift: float = 0.0) -> bytes:
    """Golden inputs of ``model``; with ``shift``, of a model that answers otherwise."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    outputs = model.run(pixels[np.newaxis], ["logits", "probabilities"])
    tolerances = np.array(json.dumps({"fp32": {"logits": 1e-3, "probabilities": 1e-3}}))
    out = io.BytesIO()
    arrays = {name: value + np.float32(shift) for name, value in outputs.items()}
    np.savez(out, image_0000=pixels, tolerances=tolerances, **arrays)
    path.write_bytes(out.getvalue())
    return out.getvalue()


@pytest.fixture(scope="session")
def write_golden() -> Callable[..., bytes]:
    """``write_golden(path, model)``: the golden inputs of a model."""
    return golden_inputs


@dataclass
class Process:
    """`pocketdx serve` in a process of its own."""

    popen: subprocess.Popen[str]
    url: str
    log: list[dict[str, Any]]

    def finish(self, timeout: float = 20) -> int:
        return self.popen.wait(timeout)


def command(*arguments: str) -> list[str]:
    """The command line without relying on PATH."""
    return [sys.executable, "-c", "from pocketdx_runtime.cli import main; main()", *arguments]


@pytest.fixture(scope="session")
def pocketdx() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``pocketdx("serve", ...)``: run the command line to its end."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)

    return call


@pytest.fixture
def process(tiny_model_path: Path) -> Iterator[Callable[..., Process]]:
    """``process("--threads", "1")``: `pocketdx serve` on a free port, ready."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, argv: list[str] | None = None) -> Process:
        argv = argv or command("serve", str(tiny_model_path), "--port", "0", *options)
        started = time.perf_counter()
        popen = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ})
        running.append(popen)
        assert popen.stderr is not None
        log: list[dict[str, Any]] = []
        first = popen.stderr.readline()
        assert re.match(r"\{.*listening", first), f"no first line of the log: {first}{popen.stderr.read()}"
        log.append(json.loads(first))

        def collect() -> None:
            assert popen.stderr is not None
            log.extend(json.loads(line) for line in popen.stderr)

        threading.Thread(target=collect, daemon=True).start()
        url = log[0]["url"]
        while True:
            try:
                if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                    return Process(popen, url, log)
            except httpx.TransportError:
                assert popen.poll() is None, f"the server ended with {popen.returncode}"
            assert time.perf_counter() - started < 60, "the server did not get ready"
            time.sleep(0.01)

    yield start
    for popen in running:
        if popen.poll() is None:
            popen.kill()
        popen.wait(10)
        if popen.stderr is not None:
            popen.stderr.close()
