"""A bounded pool of threads in front of a bounded queue, with work that can be dropped and work done together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Generator, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pocketdx_serve.pinning import stay_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

MOST_TOGETHER = 6
"""Light jobs that a thread takes at once. Of four the server answers 5 % less in overload, eight gain no more, and all
wait for each other."""


class Full(Exception):  # noqa: N818  (an everyday outcome, not an error)
    """The queue has no room for this request."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a job hands to its thread half-way, to be answered together with what other jobs ask.

    Attributes:
        key: asks of equal keys may be answered in one go.
        value: what is asked.
        answer: gives an answer for each of the values of some asks of one key, in their order.
    """

    key: Hashable
    value: Any
    answer: Callable[[list[Any]], Sequence[Any]]


Asking = Generator[Ask, Any, T]
"""A job's work where a part of it is cheaper together: yields an `Ask`, is sent the answer, returns its outcome."""


class Work(NamedTuple, Generic[T]):
    """What a job is to do.

    Attributes:
        begin: gives the outcome, or an `Asking` that will; called on the job's thread.
        light: short, so that others may wait for it: a thread takes several such jobs at once.
    """

    begin: Callable[[Job[T]], T | Asking[T]]
    light: bool = False


class Job(Generic[T]):
    """One unit of work: waits in the queue, runs on a thread, resolves its future on the event loop.

    ``dropped`` may be read by the work itself between two steps, to stop early. ``queued_at`` is on the clock
    of ``time.perf_counter``.
    """

    __slots__ = ("_asking", "_loop", "_outcome", "dropped", "future", "light", "queued_at", "work")

    def __init__(self, work: Work[T], loop: asyncio.AbstractEventLoop) -> None:
        self.work: Callable[[Job[T]], T | Asking[T]] | None = work.begin
        self.light = work.light
        self.future: asyncio.Future[T] = loop.create_future()
        self.dropped = False
        self.queued_at = time.perf_counter()
        self._loop = loop
        self._asking: Asking[T] | None = None
        self._outcome: tuple[T | None, BaseException | None] | None = None

    def begin(self) -> Ask | None:
        """Work on the calling thread until it asks for something; None once it is done."""
        work, self.work = self.work, None  # the job must not keep an image alive once it is done
        if work is None or self.dropped:
            return None
        try:
            made = work(self)
        except BaseException as error:
            self._outcome = None, error
            return None
        if isinstance(made, Generator):
            self._asking = made
            return self.resume(None)
        self._outcome = made, None
        return None

    def resume(self, answer: Any, error: BaseException | None = None) -> Ask | None:
        """Go on with the answer to its ask, or with the error that came instead; as `begin`."""
        asking = self._asking
        assert asking is not None
        try:
            return asking.send(answer) if error is None else asking.throw(error)
        except StopIteration as end:
            self._outcome = end.value, None
        except BaseException as failure:
            self._outcome = None, failure
        self._asking = None
        return None

    def settle(self) -> None:
        """Resolve the future, on the event loop's thread; one that was dropped stays as it is."""
        if self._outcome is None or self.future.done():
            return
        value, error = self._outcome
        if error is None:
            self.future.set_result(value)  # type: ignore[arg-type]  # None only where T is
        else:
            self.future.set_exception(error)

    def hand_over(self, jobs: Sequence[Job[T]]) -> None:
        """Let the event loop settle jobs that are done, in one go."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, jobs)


def _settle(jobs: Sequence[Job[Any]]) -> None:
    for job in jobs:
        job.settle()


def run(jobs: Sequence[Job[Any]]) -> None:
    """Do the work of some jobs on the calling thread: one after the other, but together what they ask for."""
    asked = [(job, ask) for job in jobs if (ask := job.begin()) is not None]
    while asked:
        key = asked[0][1].key
        same = [each for each in asked if each[1].key == key]
        asked = [each for each in asked if each[1].key != key]
        try:
            answers = same[0][1].answer([ask.value for _, ask in same])
        except BaseException as error:
            again = [job.resume(None, error) for job, _ in same]
        else:
            again = [job.resume(answer) for (job, _), answer in zip(same, answers, strict=True)]
        asked += [(job, ask) for (job, _), ask in zip(same, again, strict=True) if ask is not None]
    if jobs:
        jobs[0].hand_over(jobs)


class Workers:
    """``threads`` daemon threads and room for ``queue`` waiting jobs.

    While more jobs wait than threads, a thread takes its share of the light ones at once, `MOST_TOGETHER` at most. It
    never waits for others to come. Submitting is all or nothing and never waits. The threads are daemons, so that a
    wedged native call cannot keep the process from ending.

    Args:
        threads: how many.
        queue: jobs that may wait.
        cpus: one for each thread to stay on, as `pinning.cpus_for` gives them; empty: threads go where they like.
    """

    def __init__(self, threads: int, queue: int, cpus: Sequence[int] = ()) -> None:
        self.threads = threads
        self.capacity = threads + queue
        self._waiting: deque[Job[object]] = deque()
        self._busy_since: dict[int, float] = {}
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()
        self._pool = [
            threading.Thread(target=self._serve, args=(cpu,), name=f"pocketdx-{n}", daemon=True)
            for n, cpu in enumerate(cpus or [None] * threads)
        ]

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
    def room(self) -> int:
        """Jobs that would be accepted now."""
        return max(0, self.capacity - len(self._waiting) - self._running)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Threads at work."""
        return len(self._busy_since)

    def supplied(self) -> bool:
        """Whether every thread finds work when it has done what it is at, all that it may take at once."""
        return len(self._waiting) >= self.threads * MOST_TOGETHER

    def stalled(self, seconds: float) -> bool:
        """Whether every thread has been busy with one job for more than ``seconds``."""
        with self._changed:
            started = list(self._busy_since.values())
        return len(started) == self.threads and time.monotonic() - max(started) > seconds

    def submit(self, works: Sequence[Work[T]]) -> list[Job[T]]:
        """Queue all of ``works``, from the event loop's thread.

        Raises:
            Full: there is no room for all of them, or the pool is closed; none was queued.
        """
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._closed or len(works) > self.room:
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

    def _serve(self, cpu: int | None) -> None:
        if cpu is not None:
            stay_on(cpu)
        me = threading.get_ident()
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                jobs = self._take()
                self._busy_since[me] = time.monotonic()
                self._running += len(jobs)
            try:
                run(jobs)
            finally:
                with self._changed:
                    del self._busy_since[me]
                    self._running -= len(jobs)
                del jobs  # or the last image of a quiet evening stays in memory

    def _take(self) -> list[Job[object]]:
        """The next job, and where that is light, others behind it: a thread's fair share of what waits.

        Of all threads, not of the idle ones: those at work come back soon, and jobs taken together wait for each other.
        """
        share = min(MOST_TOGETHER, -(-len(self._waiting) // self.threads))
        jobs = [self._waiting.popleft()]
        while jobs[-1].light and len(jobs) < share and self._waiting[0].light:
            jobs.append(self._waiting.popleft())
        return jobs
