"""What one running app holds: the model's engine, the pool, the limits, and whether it may be asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.diagnosis import Diagnosis, diagnose
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.image import Limits
from pocketdx_serve.body import HeldBytes
from pocketdx_serve.engine import Answer, Refused, is_light
from pocketdx_serve.errors import AuditError
from pocketdx_serve.metrics import Metrics
from pocketdx_serve.models import State, prepare
from pocketdx_serve.pinning import cpus_for
from pocketdx_serve.problems import ImageFault, Problem, refuse_images
from pocketdx_serve.rates import Rates
from pocketdx_serve.reload import Reloader
from pocketdx_serve.watch import Watch, too_late
from pocketdx_serve.workers import Asking, Full, Job, Work, Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Request
    from starlette.types import Receive

    from pocketdx_runtime.manifest import Manifest
    from pocketdx_serve.audit import AuditLog
    from pocketdx_serve.engine import Pixels
    from pocketdx_serve.keys import KeyRing
    from pocketdx_serve.models import Loaded, Models, Slot
    from pocketdx_serve.settings import Settings

T = TypeVar("T")
R = TypeVar("R")
Examiner = Callable[[Job[Answer[T] | Refused]], Asking[Answer[T] | Refused]]

STALL_DEADLINES = 2
"""A worker busy with one image for this many deadlines is taken for wedged."""

ANYBODY = "anybody"
SYNC_SECONDS = 1.0

log = logging.getLogger("pocketdx.serve")


class Service:
    """The state of one app. All methods are for the event loop's thread, except `drain`."""

    def __init__(
        self, models: Models, settings: Settings, keys: KeyRing | None = None, audit: AuditLog | None = None
    ) -> None:
        self.models = models
        self.settings = settings
        self.keys = keys
        self.audit = audit
        self.limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels, max_side=settings.max_side)
        threads = settings.threads or granted_cpus()
        # A model with threads of its own starts them from one of these, and they would stay where that stays.
        alone = all(slot.model.threads == 1 for slot in models)
        self.workers = Workers(threads, settings.queue, cpus_for(threads) if alone else ())
        self.held = HeldBytes(settings.max_held)
        self.rates = Rates(settings.rate, max(settings.rate, settings.max_images)) if settings.rate else None
        self.metrics = Metrics()
        self.metrics.watch("queue_depth", "Images that wait for a thread.", lambda: self.workers.waiting)
        self.metrics.watch("busy_threads", "Threads at work on an image.", lambda: self.workers.busy)
        self.metrics.watch("held_bytes", "Bytes of request bodies in memory.", lambda: self.held.total)
        self.reloader = Reloader(models, keys, self.limits, self.metrics, settings.reload_interval, self._ready)
        self.draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the threads and, beside the server, load and test the models."""
        self._loop = asyncio.get_running_loop()
        self.workers.start()
        self._tasks = [asyncio.create_task(each) for each in (self._get_ready(), self.reloader.run())]
        if self.audit is not None:
            self._tasks.append(asyncio.create_task(self._sync(self.audit)))

    async def stop(self) -> None:
        """Stop the threads; what is still queued is dropped."""
        self.drain()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.workers.close(timeout=self.settings.deadline)
        if self.audit is not None:
            self.audit.close()

    def reload_soon(self) -> None:
        """Look for changed files now. For any thread, and for signal handlers."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.reloader.poke)

    async def _sync(self, audit: AuditLog) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                await asyncio.to_thread(audit.sync)
            except OSError as error:
                log.error("audit log: cannot be flushed to the disk: %s", error.strerror)

    def _ready(self, slot: Slot) -> None:
        loaded = slot.get()
        self.metrics.answering(slot)
        fields = {"model": slot.name, "digest": loaded.model.digest, "tested": loaded.tested}
        log.info("ready", extra={"fields": fields})

    def drain(self) -> None:
        """Report not ready from now on. Requests that reach the server all the same are still answered."""
        self.draining = True

    async def _get_ready(self) -> None:
        for slot in self.models:
            if slot.state is State.STARTING:
                await self._first_load(slot)

    async def _first_load(self, slot: Slot) -> None:
        (job,) = self.workers.submit([Work(lambda _job: prepare(slot.model, self.limits))])
        try:
            slot.fill(await job.future)
        except PocketDxError as error:
            slot.state = State.FAILED
            log.error("self-test failed: %s", error)
        except Exception:
            slot.state = State.FAILED
            log.exception("self-test failed")
        else:
            self._ready(slot)

    def check_alive(self) -> None:
        """Return if the workers move.

        Raises:
            Problem: 503, every worker has been busy with one image for far longer than any deadline.
        """
        if self.workers.stalled(STALL_DEADLINES * self.settings.deadline):
            raise Problem("stalled", "every worker has been busy for too long; restart the server")

    def check_ready(self) -> None:
        """Return if new requests are welcome: every model has passed its self-test, and threads move.

        Raises:
            Problem: 503, with the reason.
        """
        if self.draining:
            raise Problem("draining", "the server is shutting down; ask another one")
        for slot in self.models:
            slot.get()
        self.check_alive()

    def admit(self, request: Request, images: int = 0) -> str:
        """Name of who asks, from the key; "anybody" where the server has no keys.

        Args:
            request: with the key in its headers.
            images: to count against the key's rate.

        Raises:
            Problem: 401 no known key, 429 too many images.
        """
        if self.keys is None:
            return ANYBODY
        who = self.keys.admit(request.headers)
        request.state.notes["key"] = who
        if self.rates is not None and images:
            self.rates.take(who, images)
        return who

    def owe(self, who: str, images: int) -> None:
        """Count images beyond the one that was counted when the request was let in."""
        if self.rates is not None and images > 0 and self.keys is not None:
            self.rates.owe(who, images)

    def work(self, examiner: Examiner[T], image: bytes | Pixels, who: str, loaded: Loaded) -> Work[Answer[T] | Refused]:
        """What a thread is to do with an image.

        Where there is an audit log, it also writes the image's line, before anybody has the answer.

        Args:
            examiner: a method of the model's engine, with all but the job bound to it.
            image: encoded, or pixels.
            who: asks.
            loaded: the model.
        """
        if self.audit is None:
            return Work(examiner, is_light(image))
        audit = self.audit

        def recorded(job: Job[Answer[T] | Refused]) -> Asking[Answer[T] | Refused]:
            outcome = yield from examiner(job)
            if isinstance(outcome, Answer):
                data = image if isinstance(image, bytes) else image.tobytes()
                try:
                    audit.record(who, loaded.model.digest, verdict_of(outcome.value, loaded.model.manifest), data)
                except AuditError as error:
                    log.error("no answer without an audit record: %s", error)
                    return Refused("audit-unavailable", "the audit log cannot be written; tell the operator")
            return outcome

        return Work(recorded, is_light(image))

    def room(self) -> int:
        """How many more images have a place."""
        return self.workers.room

    def check_room(self) -> None:
        """Return if a request for images has a chance, before its body is read.

        Raises:
            Problem: 503, full.
        """
        if not self.workers.room:
            raise self._overloaded()

    def _overloaded(self) -> Problem:
        return Problem("overloaded", f"{self.workers.waiting} images are waiting already; try again in a moment")

    async def offload(self, work: Callable[[], R]) -> R:
        """The result of ``work``, done by a thread of the pool; raises as `examine`, and what it raises."""
        try:
            (job,) = self.workers.submit([Work[R](lambda _job: work())])
        except Full:
            raise self._overloaded() from None
        try:
            async with asyncio.timeout(self.settings.deadline):
                result: R = await job.future
                return result
        except TimeoutError:
            raise too_late(self.settings.deadline) from None
        finally:
            if not job.future.done():
                self.workers.drop([job])

    async def examine(
        self, model: str, works: Sequence[Work[Answer[T] | Refused]], receive: Receive
    ) -> list[Answer[T]]:
        """Answers in order, each image one job of the pool.

        One image per job: one request keeps all threads busy, and small requests pass between large ones.

        Args:
            model: the slot's name, for the metrics.
            works: for each image, as `work` gives it.
            receive: of the request, whose body has been read; it tells when the client goes away.

        Raises:
            Problem: 503 the queue is full, 504 the deadline passed, 4xx an image was refused, 500 our fault.
            ClientGone: nobody waits for the answer any more.
        """
        try:
            jobs = self.workers.submit(works)
        except Full:
            raise self._overloaded() from None
        futures = [job.future for job in jobs]
        watch = Watch(partial(self.workers.drop, jobs), receive, self.settings.deadline)
        try:
            for future in futures:
                await _done(future)
            answers = _sort_out(futures)
        except asyncio.CancelledError:
            if watch.ended is None:
                raise
            raise watch.ended from None
        finally:
            watch.end()
            if not all(future.done() for future in futures):
                self.workers.drop(jobs)
        self.metrics.answered(model, answers)
        return answers


def verdict_of(value: object, manifest: Manifest) -> str | None:
    """The label in an answer; None for one without, such as an embedding."""
    if isinstance(value, dict) and "probabilities" in value:
        value = diagnose(value["probabilities"][0].tolist(), manifest)
    return value.label if isinstance(value, Diagnosis) else None


async def _done(future: asyncio.Future[Any]) -> None:
    """Return once it has an outcome, whatever that is.

    Raises:
        CancelledError: it was dropped, or the caller was.
    """
    try:
        await future
    except Exception:  # `_sort_out` looks at it
        return


def _sort_out(futures: Sequence[asyncio.Future[Answer[T] | Refused]]) -> list[Answer[T]]:
    """The answers, if there is one for every image.

    Raises:
        Problem: some image was refused, or inference failed.
    """
    answers: list[Answer[T]] = []
    faults: list[ImageFault] = []
    for future in futures:
        # Each error is looked at, or asyncio complains of one that nobody took; the first leads.
        if (error := future.exception()) is not None:
            log.error("inference failed", exc_info=error)
    for index, future in enumerate(futures):
        if future.exception() is not None:
            raise Problem("internal", "the model failed on an image; see the server's log")
        outcome = future.result()
        if isinstance(outcome, Refused):
            faults.append(ImageFault(index, outcome.reason, outcome.detail))
        else:
            answers.append(outcome)
    if faults:
        raise refuse_images(faults, len(futures))
    return answers
