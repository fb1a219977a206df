"""TensorFlow Lite Support's Task library, ImageClassifier and ImageEmbedder, in an environment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pocketdx_export
from pocketdx_export.backends import Runner
from pocketdx_export.devices import task_library
from pocketdx_export.devices.worker import Limits, shared_folder, worker
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.manifest import Manifest

_LIMITS = Limits(start=60, picture=30)


def absent() -> str | None:
    """Why it cannot be used, with the remedy; None when it is set up."""
    return task_library.absent()


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Runner]:
    """Open a `.tflite` file; its pictures may be of any size, the library resizes them.

    Raises:
        BackendError: it cannot be opened there.
    """
    script = Path(task_library.__file__).with_name("on_task_library.py")
    with shared_folder(path) as folder:
        package = Path(pocketdx_export.__file__).parent
        (folder / package.name).symlink_to(package)
        command, environment = task_library.command(script, folder, str(granted_cpus()))
        environment["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{folder}"
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with worker("task-library", command, environment=environment, folder=folder, limits=_LIMITS) as run:
            yield run
