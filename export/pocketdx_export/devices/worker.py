"""A process that runs one model on a device, and how to talk with it.

The process is started once for a model and answers until its standard input ends. Each line that it reads or writes
is a JSON object; arrays travel in two files of plain bytes, which a Python under emulation, Node and a browser all
write without a library:

    it, once:  {"ready": {...what it runs on...}}
    we:        {"shapes": [[height, width], ...]}           and uint8 RGB pixels, picture by picture, in `pictures`
    it:        {"outputs": [["logits", [N, 2]], ...]}       and float32 values, output by output, in `answers`
    it, if it cannot: {"error": "why, in one line"}

Little-endian, as every device here is.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pocketdx_export.backends import BackendError, Outputs, Pixels
from pocketdx_export.devices.programs import ended, last_words
from pocketdx_runtime.errors import printable

# Together in one request: bounds what is lost to a time-out, and the memory on both sides.
_PICTURES_AT_ONCE = 8
_PIXELS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Limits:
    """How long and how large; beyond them the process is ended and the backend fails.

    Attributes:
        start: seconds until it is ready.
        picture: seconds for each picture of a request, and once more for the request.
        memory: bytes of data that it may have, where the system can hold it to that; None is no limit.
    """

    start: float = 180.0
    picture: float = 60.0
    memory: int | None = None


@dataclass(eq=False)
class Worker:
    """The running process; `worker` starts and ends it.

    Attributes:
        name: of the backend, for messages.
        folder: that it shares with us: `pictures` and `answers` lie there.
        limits: that it is held to.
        about: what it said of the machine that it runs on.
    """

    name: str
    folder: Path
    limits: Limits
    about: Mapping[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[str] = field(init=False)
    _errors: IO[bytes] = field(init=False)
    _lines: queue.Queue[str | None] = field(init=False, default_factory=queue.Queue)

    def __call__(self, pictures: Sequence[Pixels]) -> Outputs:
        """See `backends.Runner`."""
        parts = [self._ask(request) for request in requests(pictures)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        """Start the process and wait until it is ready; raises BackendError when it fails."""
        self._errors = (self.folder / "errors").open("wb")
        self._process = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(environment),
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that `stop` also reaches what it has started
        )
        if self.limits.memory is not None and sys.platform == "linux":
            import resource

            with suppress(ProcessLookupError):  # it has ended already, which `_answer` finds out
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (self.limits.memory, self.limits.memory))
        threading.Thread(target=self._listen, daemon=True).start()
        self.about = self._answer("start", self.limits.start)["ready"]

    def stop(self) -> None:
        """End the process, kindly at first, and all that it has started."""
        with suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill(self._process)
            self._errors.close()

    def _ask(self, pictures: Sequence[Pixels]) -> Outputs:
        with (self.folder / "pictures").open("wb") as file:
            for picture in pictures:
                file.write(np.ascontiguousarray(picture, np.uint8).data)
        request = json.dumps({"shapes": [picture.shape[:2] for picture in pictures]})
        with suppress(OSError):  # it is no more, which `_answer` finds out
            if self._process.stdin:
                self._process.stdin.write(request + "\n")
                self._process.stdin.flush()
        answer = self._answer("run", self.limits.picture * (len(pictures) + 1))
        values = np.fromfile(self.folder / "answers", np.dtype("<f4"))
        return self._cut(values, answer["outputs"], len(pictures))

    def _cut(self, values: np.ndarray[Any, Any], outputs: Sequence[tuple[str, list[int]]], count: int) -> Outputs:
        """Values one after the other, as the arrays that they are."""
        found: Outputs = {}
        start = 0
        for name, shape in outputs:
            end = start + int(np.prod(shape))
            if end > len(values) or not shape or shape[0] != count:
                raise BackendError(f"{self.name}: its answer {name} has the wrong size, {shape} for {count} pictures")
            found[name] = values[start:end].reshape(shape).astype(np.float32)
            start = end
        return found

    def _answer(self, what: str, seconds: float) -> Mapping[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            _kill(self._process)
            raise BackendError(f"{self.name}: no answer in {seconds:.0f} s ({what}); ended it") from None
        if line is None:
            how = ended(self._process.wait())
            said = last_words((self.folder / "errors").read_text("utf-8", errors="replace"))
            raise BackendError(f"{self.name}: its process {how} ({what}): {said}")
        try:
            content = json.loads(line)
        except ValueError:
            content = {"error": f"said {line.strip()[:200]!r}"}
        if "error" in content:
            raise BackendError(f"{self.name}: {printable(str(content['error']))[:500]}")
        answer: Mapping[str, Any] = content
        return answer

    def _listen(self) -> None:
        with suppress(ValueError, OSError):  # closed while reading
            for line in self._process.stdout or ():
                self._lines.put(line)
        self._lines.put(None)


_RUNNING: set[Worker] = set()


def stop_all() -> None:
    """Kill every process of a worker; whoever waits for one gets a BackendError."""
    for each in tuple(_RUNNING):
        with suppress(AttributeError):  # not started yet
            _kill(each._process)


@contextmanager
def worker(
    name: str,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    folder: Path,
    limits: Limits,
) -> Iterator[Worker]:
    """Start a process that answers as this module says; it ends with the context.

    Args:
        name: of the backend.
        command: to start it.
        environment: all of it.
        folder: shared with it; see `shared_folder`.
        limits: that it is held to.

    Raises:
        BackendError: it does not start, or (from the worker) fails later.
    """
    started = Worker(name, folder, limits)
    _RUNNING.add(started)
    try:
        started.start(command, environment)
        yield started
    except OSError as problem:
        raise BackendError(f"{name}: {problem.filename}: {problem.strerror}") from problem
    finally:
        _RUNNING.discard(started)
        if hasattr(started, "_process"):
            started.stop()


@contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """A folder for a worker, with the model file at `path` linked into it as `model`; it goes with the context."""
    with tempfile.TemporaryDirectory(prefix="pocketdx-device-") as name:
        folder = Path(name)
        (folder / "model").symlink_to(path.absolute())
        yield folder


def requests(pictures: Sequence[Pixels]) -> Iterator[list[Pixels]]:
    """Cut pictures, in their order, into what is sent at once."""
    batch: list[Pixels] = []
    pixels = 0
    for picture in pictures:
        size = picture.shape[0] * picture.shape[1]
        if batch and (len(batch) == _PICTURES_AT_ONCE or pixels + size > _PIXELS_AT_ONCE):
            yield batch
            batch, pixels = [], 0
        batch.append(picture)
        pixels += size
    if batch:
        yield batch


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
