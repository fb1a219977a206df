"""PocketDx's runtime for the web (onnxruntime-web, WebAssembly): in Node, and in a headless browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketdx_export.backends import Runner
from pocketdx_export.devices import browser, node
from pocketdx_export.devices.worker import Limits, shared_folder, worker
from pocketdx_runtime.manifest import Manifest

# No limit of memory: WebAssembly's own is 4 GB, and a browser reserves more than it uses.
_LIMITS = Limits(start=120, picture=30)
_SCRIPT = Path(node.__file__).parent / "on_web" / "main.mjs"


def absent(*, where: str, threads: int = 1) -> str | None:
    """Why it cannot be used, with the remedy; None when it is set up."""
    if threads > (cpus := os.cpu_count() or 1):
        return f"{threads} threads need as many CPUs, this machine has {cpus}"
    return browser.absent() if where == "browser" else node.absent()


@contextmanager
def opened(
    path: Path, manifest: Manifest, *, where: str, threads: int = 1, limits: Limits = _LIMITS
) -> Iterator[Runner]:
    """Open an `.onnx` file.

    Args:
        path: of the file.
        manifest: of the file.
        where: "node" or "browser".
        threads: of WebAssembly. More than one only in the browser, whose page is cross-origin isolated for it.
        limits: of time.

    Raises:
        BackendError: it cannot be opened there.
    """
    program = [browser.program() or ""] if where == "browser" else []
    with shared_folder(path) as folder:
        command = ["node", str(_SCRIPT), where, str(node.runner()), str(folder), str(threads), *program]
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment["TMPDIR"] = str(folder)  # where a browser that is ended leaves its leftovers
        with worker(where, command, environment=environment, folder=folder, limits=limits) as run:
            run.about = {**run.about, "software": {**run.about["software"], **node.versions()}}
            yield run
