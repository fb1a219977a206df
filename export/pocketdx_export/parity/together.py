"""Some work beside other work, with one way out when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pocketdx_export.devices.worker import stop_all
from pocketdx_runtime.cpu import granted_cpus

T = TypeVar("T")
R = TypeVar("R")


def together(work: Callable[[T], R], items: Sequence[T], apart: Callable[[T], bool]) -> list[R]:
    """The results for all items, in their order.

    What is `apart` waits for other processes and runs on threads, as many at a time as CPUs are granted; meanwhile the
    calling thread does the rest, one after the other. An emulated processor that keeps one CPU busy leaves the others
    to its neighbours.

    Args:
        work: safe to call from several threads for items that are apart.
        items: what to do.
        apart: which of them run on threads.

    Raises:
        Exception: whatever `work` raises first, in the order of items. What waits is then given up and device
            processes at work are ended; so, too, at Ctrl-C.
    """
    pool = ThreadPoolExecutor(granted_cpus(), thread_name_prefix="pocketdx-device")
    try:
        begun: list[Future[R] | None] = [pool.submit(work, item) if apart(item) else None for item in items]
        here = [work(item) if future is None else None for item, future in zip(items, begun, strict=True)]
        return [
            future.result() if future is not None else result  # type: ignore[misc]  # one of the two there is
            for future, result in zip(begun, here, strict=True)
        ]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_all()
        raise
    finally:
        pool.shutdown()
