"""A bounded pool of threads in front of a bounded queue, with work that can be dropped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class Full(Exception):  # noqa: N818  (an everyday outcome, not an error)
    """The queue has no room for this request."""


class Job(Generic[T]):
    """One unit of work: waits in the queue, runs on a thread, resolves its future on the event loop.

    ``dropped`` may be read by the work itself between two steps, to stop early. ``queued_at`` is on the clock
    of ``time.perf_counter``.
    """

    __slots__ = ("_loop", "dropped", "future", "queued_at", "work")

    def __init__(self, work: Callable[[Job[T]], T], loop: asyncio.AbstractEventLoop) -> None:
        self.work: Callable[[Job[T]], T] | None = work
        self.future: asyncio.Future[T] = loop.create_future()
        self.dropped = False
        self.queued_at = time.perf_counter()
        self._loop = loop

    def run(self) -> None:
        """Do the work on the calling thread and hand the outcome to the event loop."""
        work, self.work = self.work, None  # the job must not keep an image alive once it is done
        if work is None or self.dropped:
            return
        try:
            value = work(self)
        except BaseException as error:
            self._deliver(self._fail, error)
        else:
            self._deliver(self._succeed, value)

    def _deliver(self, callback: Callable[..., None], outcome: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, outcome)

    def _succeed(self, value: T) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Workers:
    """``threads`` daemon threads and room for ``queue`` waiting jobs.

    Submitting is all or nothing and never waits. The threads are daemons, so that a wedged native call cannot
    keep the process from ending.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self.threads = threads
        self.capacity = threads + queue
        self._waiting: deque[Job[object]] = deque()
        self._busy_since: dict[int, float] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._pool = [threading.Thread(target=self._serve, name=f"pocketdx-{n}", daemon=True) for n in range(threads)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._pool:
            thread.start()

    def close(self, timeout: float) -> None:
        """Drop what waits and join the threads, for at most ``timeout`` seconds in all."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for job in waiting:
            self.drop([job])
        end = time.monotonic() + timeout
        for thread in self._pool:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    @property
    def full(self) -> bool:
        """Whether not even one more job would be accepted now."""
        return len(self._waiting) + len(self._busy_since) >= self.capacity

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Threads at work."""
        return len(self._busy_since)

    def stalled(self, seconds: float) -> bool:
        """Whether every thread has been busy with one job for more than ``seconds``."""
        with self._changed:
            started = list(self._busy_since.values())
        return len(started) == self.threads and time.monotonic() - max(started) > seconds

    def submit(self, works: Sequence[Callable[[Job[T]], T]]) -> list[Job[T]]:
        """Queue all of ``works``, from the event loop's thread.

        Raises:
            Full: there is no room for all of them, or the pool is closed; none was queued.
        """
        loop = asyncio.get_running_loop()
        with self._changed:
            taken = len(self._waiting) + len(self._busy_since)
            if self._closed or taken + len(works) > self.capacity:
                raise Full
            jobs = [Job(work, loop) for work in works]
            self._waiting.extend(jobs)  # type: ignore[arg-type]  # Job is invariant; the queue never looks inside
            self._changed.notify(len(jobs))
        return jobs

    def drop(self, jobs: Sequence[Job[T]]) -> None:
        """Give up ``jobs``: those that wait leave the queue now, those that run stop at their next step."""
        for job in jobs:
            job.dropped = True
            job.work = None
            with self._changed, suppress(ValueError):
                self._waiting.remove(job)  # type: ignore[arg-type]
            job.future.cancel()

    def _serve(self) -> None:
        me = threading.get_ident()
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._busy_since[me] = time.monotonic()
            try:
                job.run()
            finally:
                del job  # or the last image of a quiet evening stays in memory
                with self._changed:
                    del self._busy_since[me]
