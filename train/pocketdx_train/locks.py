"""Locks that the system drops when their process dies, however it dies.

POSIX record locks, because forked children do not inherit them: a worker that outlives its killed parent for some
seconds must not keep the lock. They hold between processes; within this one `_held` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

_held: set[Path] = set()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of the file `path`, which is made where it is missing, while the body runs.

    Gives:
        Whether it is held: False where another process or thread holds it.

    Raises:
        OSError: the file cannot be made.
    """
    real = path.resolve()
    if real in _held:  # to open and close the file would drop the lock
        yield False
        return
    with path.open("a") as file:
        if not _lock(file):
            yield False
            return
        _held.add(real)
        try:
            yield True
        finally:
            _held.discard(real)


def is_abandoned(path: Path) -> bool:
    """Whether the process that held the lock of the file `path` has died; False where that cannot be told."""
    if sys.platform == "win32" or path.resolve() in _held:
        return False
    try:
        with path.open("r+") as file:
            return _lock(file)
    except OSError:  # gone, or not ours to touch
        return False


def _lock(file: IO[str]) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
