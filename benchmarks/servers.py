"""Servers to be measured: PocketDx and those it is compared with, each a process on 127.0.0.1, and load for them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONNECTIONS = 16
BOUNDARY = "bench"


@dataclass(frozen=True)
class Payload:
    """A body in a file, raw and as a form."""

    name: str
    data: bytes
    raw: Path
    form: Path

    @classmethod
    def make(cls, folder: Path, name: str, data: bytes) -> Payload:
        raw, form = folder / f"{len(data)}.jpg", folder / f"{len(data)}.form"
        raw.write_bytes(data)
        disposition = 'Content-Disposition: form-data; name="image"; filename="x.jpg"'
        head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
        form.write_bytes(head + data + f"\r\n--{BOUNDARY}--\r\n".encode())
        return cls(name, data, raw, form)


@dataclass
class Server:
    """A server that is being measured.

    Attributes:
        process: its first one.
        port: on 127.0.0.1.
        path: that takes images.
        form: whether it wants them in a form.
        load_cpus: where load for it runs; None: anywhere.
    """

    process: subprocess.Popen[bytes]
    port: int
    path: str
    form: bool
    load_cpus: Collection[int] | None = None

    @property
    def rss(self) -> float:
        """Resident memory in MB, Linux alone."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024

    @property
    def cpu(self) -> float:
        """CPU seconds used until now, by the process and its children; Linux alone."""
        parents, seconds = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            pid = int(stat.parent.name)
            parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        family = {self.process.pid}
        while grown := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= grown
        return sum(seconds.get(pid, 0.0) for pid in family)

    def load(self, payload: Payload, seconds: float, connections: int = CONNECTIONS, rate: float | None = None) -> Any:
        body = payload.form if self.form else payload.raw
        media_type = f"multipart/form-data; boundary={BOUNDARY}" if self.form else "image/jpeg"
        command = [sys.executable, str(HERE / "load.py"), f"http://127.0.0.1:{self.port}{self.path}", str(body)]
        command += ["--type", media_type, "--seconds", str(seconds), "--connections", str(connections)]
        command += ["--rate", str(rate)] if rate else []
        done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=_on(self.load_cpus))
        return json.loads(done.stdout)

    def post(self, data: bytes, media_type: str = "image/jpeg") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", self.path, data, {"Content-Type": media_type})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _on(cpus: Collection[int] | None) -> Callable[[], None] | None:
    """What a child does before it begins, to run on some CPUs alone; Linux."""
    return partial(os.sched_setaffinity, 0, cpus) if cpus else None


@contextmanager
def serving(
    command: list[str],
    port: int,
    path: str,
    payload: Payload,
    *,
    form: bool = False,
    cpus: Collection[int] | None = None,
    load_cpus: Collection[int] | None = None,
) -> Iterator[Server]:
    """A server that has answered once, on some CPUs alone if they are given."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # LitServe's workers outlive a parent that is killed
        preexec_fn=_on(cpus),
    )
    server = Server(process, port, path, form, load_cpus)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                status = server.post((payload.form if form else payload.raw).read_bytes(), *media_types(form))
            except OSError:
                status = 0
            if status == 200:
                break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"error: {' '.join(command)} does not answer (status {status})")
            time.sleep(0.02)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def media_types(form: bool) -> list[str]:
    return [f"multipart/form-data; boundary={BOUNDARY}"] if form else ["image/jpeg"]


def ours(model: Path, **where: Any) -> Callable[[Payload], Any]:
    def start(payload: Payload) -> Any:
        port = free_port()
        main = "from pocketdx_runtime.cli import main; main()"
        command = [sys.executable, "-c", main, "serve", str(model), "--port", str(port)]
        return serving(command, port, "/v1/diagnose", payload, **where)

    return start


def plain(run: Path) -> Callable[[Payload], Any]:
    def start(payload: Payload) -> Any:
        port = free_port()
        command = [sys.executable, str(HERE / "rivals/plain_app.py"), str(run), str(port)]
        return serving(command, port, "/predict", payload, form=True)

    return start


def litserve(folder: Path, model: Path) -> Callable[[Payload], Any]:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = ["litserve", "onnxruntime", "pillow", "numpy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)

    def start(payload: Payload) -> Any:
        port = free_port()
        command = [str(python), str(HERE / "rivals/litserve_app.py"), str(model.resolve()), str(port)]
        return serving(command, port, "/predict", payload)

    return start
