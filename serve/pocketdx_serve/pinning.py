"""Threads that stay each on a CPU of its own."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pocketdx_runtime.cpu import granted_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence


def cpus_for(threads: int) -> Sequence[int]:
    """A CPU for each of ``threads``, where this process may use just as many and all of each; elsewhere none. Linux.

    The event loop wakes up some thousand times a second, and each time the system may move a thread out of its way,
    whose caches then are on another CPU: 3 to 7 % fewer answers (benchmarks/RESULTS.md). Where there are more CPUs than
    threads, or a quota of their time, there is room to go out of the way, or others to go out of the way of, and the
    system knows better.
    """
    if not hasattr(os, "sched_setaffinity") or granted_cpus() != threads:
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    return allowed if len(allowed) == threads else ()


def stay_on(cpu: int) -> None:
    """Keep the calling thread, and threads that it starts, on one CPU. Without effect once that has been taken away."""
    with suppress(OSError):
        os.sched_setaffinity(0, {cpu})
