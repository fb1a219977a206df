"""A fresh process that opens one file and runs it when told to, so that its memory is its own.

    python -m pocketdx_export.bench.worker FILE FORMAT CPUS

On standard input the manifest's JSON in one line, then a line for each run. Answers are JSON, a line each: first
`{"load": seconds, "before": bytes, "peak": bytes}`, then `{"seconds": ...}`; or `{"error": ...}`, which is the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# What is imported before the clock starts: a phone app has its engine in memory.
_ENGINES = {
    "onnx": ("pocketdx_runtime.model",),
    "ort": ("pocketdx_runtime.model",),
    "tflite": ("ai_edge_litert.interpreter",),
    "executorch": ("torch", "executorch.runtime"),
    "coreml": ("coremltools",),
}


def main(path: Path, file_format: str, cpus: int) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    try:
        if cpus == 1 and hasattr(os, "sched_setaffinity"):  # every engine keeps to it, whatever it knows of threads
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        _serve(path, file_format, cpus, sys.stdin.readline(), lambda content: print(json.dumps(content), file=answers))
    except Exception as problem:  # whatever it is, it is for the other side to say
        print(json.dumps({"error": str(problem) or type(problem).__name__}), file=answers)


def _serve(path: Path, file_format: str, cpus: int, manifest: str, say: Callable[[object], None]) -> None:
    import numpy as np

    from pocketdx_runtime.manifest import Manifest

    described = Manifest.from_json(manifest, str(path))
    size = described.preprocessing.size
    picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for module in _ENGINES[file_format]:
        import_module(module)
    before = _status("VmRSS")
    started = time.perf_counter()
    with _opened(path, file_format, cpus, described) as run:
        run(picture)
        say({"load": time.perf_counter() - started, "before": before, "peak": _status("VmHWM")})
        for _ in sys.stdin:
            started = time.perf_counter()
            run(picture)
            say({"seconds": time.perf_counter() - started})


@contextmanager
def _opened(path: Path, file_format: str, cpus: int, manifest: object) -> Iterator[Callable[..., object]]:
    """ONNX files by PocketDx's runtime, as users run them; others by the first backend of their format."""
    from pocketdx_runtime.manifest import Manifest

    assert isinstance(manifest, Manifest)
    if file_format in ("onnx", "ort"):
        from pocketdx_runtime.model import Model

        model = Model(path, threads=cpus).load()
        yield lambda picture: model.run(picture[None], manifest.outputs)
        return
    from pocketdx_export.backends import backends_for

    with backends_for(file_format)[0].opened(path, manifest) as runner:
        yield lambda picture: runner([picture])


def _status(field: str) -> int | None:
    """Bytes of resident memory now (VmRSS) or at most so far (VmHWM), since this program began; None off Linux.

    Not `ru_maxrss`: until it calls exec, a child counts its parent's memory as its own.
    """
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
