"""What the threads of the pool take from the queue, and what they do together."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pocketdx_runtime import Model, granted_cpus
from pocketdx_serve import pinning
from pocketdx_serve.app import create_app
from pocketdx_serve.workers import MOST_TOGETHER, Ask, Asking, Job, Work, Workers

Answer = Callable[[list[Any]], Sequence[Any]]


class Pool:
    """Workers, with a first job that holds each thread until `open`, so that all others wait."""

    def __init__(self, threads: int) -> None:
        self.workers = Workers(threads, queue=100)
        self.opened = threading.Event()
        self.batches: list[list[Any]] = []
        self.workers.start()
        self._entered = threading.Barrier(threads + 1)
        self.workers.submit([Work(self._hold)] * threads)
        self._entered.wait(10)

    def _hold(self, _job: Job[None]) -> None:
        self._entered.wait(10)
        self.opened.wait(10)

    def asking(self, value: Any, key: Any = "graph", *, light: bool = True) -> Work[Any]:
        def begin(_job: Job[Any]) -> Asking[Any]:
            got = yield Ask(key, value, self.answer)
            return got

        return Work(begin, light)

    def answer(self, values: list[Any]) -> list[Any]:
        self.batches.append(values)
        return [value * 10 for value in values]

    async def results(self, works: Sequence[Work[Any]]) -> list[Any]:
        jobs = self.workers.submit(works)
        self.opened.set()
        try:
            return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        finally:
            self.workers.close(10)


def run(threads: int, use: Callable[[Pool], Sequence[Work[Any]]]) -> tuple[Pool, list[Any]]:
    async def inside() -> tuple[Pool, list[Any]]:
        pool = Pool(threads)
        return pool, await pool.results(use(pool))

    return asyncio.run(inside())


def test_light_jobs_that_wait_are_asked_for_together_in_their_order() -> None:
    pool, results = run(1, lambda pool: [pool.asking(value) for value in range(8)])
    assert results == [0, 10, 20, 30, 40, 50, 60, 70]
    assert pool.batches == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert MOST_TOGETHER == 6


def test_threads_share_what_waits() -> None:
    async def inside() -> list[list[Any]]:
        workers, batches = Workers(2, queue=8), []
        together = threading.Barrier(2)

        def answer(values: list[Any]) -> list[Any]:
            together.wait(10)  # both threads are at work at the same time
            batches.append(values)
            return values

        def begin(value: int) -> Work[Any]:
            def asks(_job: Job[Any]) -> Asking[Any]:
                got = yield Ask("graph", value, answer)
                return got

            return Work(asks, True)

        jobs = workers.submit([begin(value) for value in range(3)])
        workers.start()
        assert await asyncio.gather(*(job.future for job in jobs)) == [0, 1, 2]
        workers.close(10)
        return sorted(batches)

    assert asyncio.run(inside()) == [[0, 1], [2]]


def test_a_thread_leaves_their_share_to_those_at_work() -> None:
    async def inside() -> list[list[Any]]:
        pool = Pool(1)  # of two threads, one that is held
        pool.workers.threads = 2
        await pool.results([pool.asking(value) for value in range(6)])
        return pool.batches

    assert asyncio.run(inside()) == [[0, 1, 2], [3, 4], [5]]


def on_threads(workers: Workers, ask: Callable[[], Any]) -> list[Any]:
    """What each thread of started workers says at the same time as the others."""

    async def inside() -> list[Any]:
        together = threading.Barrier(workers.threads)

        def begin(_job: Job[Any]) -> Any:
            together.wait(10)
            return ask()

        workers.start()
        jobs = workers.submit([Work(begin)] * workers.threads)
        try:
            return await asyncio.gather(*(job.future for job in jobs))
        finally:
            workers.close(10)

    return asyncio.run(inside())


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no thread on a CPU")


@needs_affinity
def test_each_thread_stays_on_a_cpu_of_its_own_and_no_other_thread_does() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    found = on_threads(Workers(len(cpus), 100, cpus), lambda: os.sched_getaffinity(0))
    assert sorted(found, key=min) == [{cpu} for cpu in cpus]
    assert os.sched_getaffinity(0) == set(cpus)


@needs_affinity
def test_a_cpu_that_was_taken_away_leaves_its_thread_where_it_is() -> None:
    assert on_threads(Workers(1, 100, [100_000]), lambda: os.sched_getaffinity(0)) == [os.sched_getaffinity(0)]


@needs_affinity
@pytest.mark.skipif(granted_cpus() < 2, reason="one CPU granted: a model has no threads of its own here")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_stay_on_cpus_unless_the_model_has_threads_of_its_own(tiny_model_path: Path, threads: int) -> None:
    service = create_app(Model(tiny_model_path, threads=threads)).state.service
    allowed = os.sched_getaffinity(0)
    alone = threads == 1 and len(allowed) == granted_cpus()
    for found in on_threads(service.workers, lambda: os.sched_getaffinity(0)):
        assert len(found) == (1 if alone else len(allowed))


@needs_affinity
@pytest.mark.parametrize(
    ("threads", "granted", "allowed", "cpus"),
    [
        pytest.param(2, 2, {3, 5}, [3, 5], id="all of its CPUs"),
        pytest.param(2, 2, {0, 1, 2, 3}, [], id="a quota of two on four CPUs"),
        pytest.param(1, 2, {0, 1}, [], id="fewer threads than CPUs"),
        pytest.param(4, 2, {0, 1}, [], id="more threads than CPUs"),
    ],
)
def test_threads_stay_on_cpus_where_there_is_a_whole_one_for_each(
    monkeypatch: pytest.MonkeyPatch, threads: int, granted: int, allowed: set[int], cpus: list[int]
) -> None:
    monkeypatch.setattr(pinning, "granted_cpus", lambda: granted)
    monkeypatch.setattr(pinning.os, "sched_getaffinity", lambda _pid: allowed)
    assert list(pinning.cpus_for(threads)) == cpus


def test_nobody_waits_for_a_heavy_job() -> None:
    pool, results = run(1, lambda pool: [pool.asking(value, light=value not in (1, 3)) for value in range(6)])
    assert results == [0, 10, 20, 30, 40, 50]
    assert pool.batches == [[0], [1], [2], [3], [4, 5]]


def test_what_is_of_another_kind_is_asked_for_apart() -> None:
    pool, results = run(1, lambda pool: [pool.asking(value, key=value % 2) for value in range(4)])
    assert results == [0, 10, 20, 30]
    assert sorted(pool.batches) == [[0, 2], [1, 3]]


def test_a_fault_of_one_is_not_the_others_fault() -> None:
    def broken(_job: Job[Any]) -> Asking[Any]:
        raise ValueError("broken before it asks")
        yield

    def use(pool: Pool) -> list[Work[Any]]:
        def late(_job: Job[Any]) -> Asking[Any]:
            yield Ask("graph", 7, pool.answer)
            raise ValueError("broken afterwards")

        return [pool.asking(1), Work(broken, True), Work(late, True), pool.asking(2)]

    pool, results = run(1, use)
    assert pool.batches == [[1, 7, 2]]
    assert (results[0], results[3]) == (10, 20)
    assert [str(each) for each in results[1:3]] == ["broken before it asks", "broken afterwards"]


def test_a_fault_of_what_is_asked_reaches_everyone_who_asked_and_the_thread_goes_on() -> None:
    def use(pool: Pool) -> list[Work[Any]]:
        def fail(_values: list[Any]) -> list[Any]:
            raise MemoryError("too large together")

        def begin(_job: Job[Any]) -> Asking[Any]:
            try:
                got = yield Ask("other", 1, fail)
            except MemoryError:
                return "refused"
            return got

        return [Work(begin, True), pool.asking(1), Work(begin, True)]

    _, results = run(1, use)
    assert results == ["refused", 10, "refused"]


def test_running_and_waiting_jobs_all_have_a_place() -> None:
    async def inside() -> None:
        workers, opened = Workers(1, queue=4), threading.Event()
        workers.start()
        entered = threading.Semaphore(0)

        def slow(values: list[Any]) -> list[Any]:
            entered.release()
            opened.wait(10)
            return values

        def begin(_job: Job[Any]) -> Asking[Any]:
            got = yield Ask("graph", 0, slow)
            return got

        first = workers.submit([Work(begin, True)])
        assert entered.acquire(timeout=10)
        rest = workers.submit([Work(begin, True)] * 4)
        assert workers.room == 0
        opened.set()
        assert await asyncio.gather(*(job.future for job in (*first, *rest))) == [0] * 5
        await asyncio.sleep(0.05)
        assert workers.room
        assert (workers.busy, workers.waiting) == (0, 0)
        workers.close(10)

    asyncio.run(inside())


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_dropped_job_leaves_the_others_of_its_batch_alone(dropped: int) -> None:
    async def inside() -> list[Any]:
        pool = Pool(1)
        jobs = pool.workers.submit([pool.asking(value) for value in range(3)])
        pool.workers.drop([jobs[dropped]])
        pool.opened.set()
        kept = [job.future for number, job in enumerate(jobs) if number != dropped]
        results = await asyncio.gather(*kept)
        assert jobs[dropped].future.cancelled()
        pool.workers.close(10)
        return results

    assert asyncio.run(inside()) == [value * 10 for value in range(3) if value != dropped]
