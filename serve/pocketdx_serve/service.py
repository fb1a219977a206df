"""What one running app holds: the model's engine, the pool, the limits, and whether it may be asked."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.image import Limits
from pocketdx_serve.body import ClientGone, HeldBytes
from pocketdx_serve.engine import Answer, Refused
from pocketdx_serve.models import Models, Slot, State, prepare
from pocketdx_serve.problems import ImageFault, Problem, refuse_images
from pocketdx_serve.workers import Full, Job, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from starlette.types import Receive

    from pocketdx_serve.settings import Settings

T = TypeVar("T")
STALL_DEADLINES = 2
"""A worker busy with one image for this many deadlines is taken for wedged."""

UNWATCHED = 0.05
"""Seconds for which a request's connection is not watched: a client that went away is noticed that much later."""

log = logging.getLogger("pocketdx.serve")


class Service:
    """The state of one app. All methods are for the event loop's thread, except `drain`."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self.limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels, max_side=settings.max_side)
        self.workers = Workers(settings.threads or granted_cpus(), settings.queue)
        self.held = HeldBytes(settings.max_held)
        self.draining = False
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the threads and, beside the server, load and test the models."""
        self.workers.start()
        self._starting = asyncio.create_task(self._get_ready())

    async def stop(self) -> None:
        """Stop the threads; what is still queued is dropped."""
        self.drain()
        if self._starting is not None:
            self._starting.cancel()
            with suppress(asyncio.CancelledError):
                await self._starting
        self.workers.close(timeout=self.settings.deadline)

    def drain(self) -> None:
        """Report not ready from now on. Requests that reach the server all the same are still answered."""
        self.draining = True

    async def _get_ready(self) -> None:
        for slot in self.models:
            if slot.state is State.STARTING:
                await self._first_load(slot)

    async def _first_load(self, slot: Slot) -> None:
        (job,) = self.workers.submit([lambda _job: prepare(slot.model, self.limits)])
        try:
            slot.fill(await job.future)
        except PocketDxError as error:
            slot.state = State.FAILED
            log.error("self-test failed: %s", error)
        except Exception:
            slot.state = State.FAILED
            log.exception("self-test failed")
        else:
            announce(slot)

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

    def check_room(self) -> None:
        """Return if a request for images has a chance, before its body is read.

        Raises:
            Problem: 503, full.
        """
        if self.workers.full:
            raise self._overloaded()

    def _overloaded(self) -> Problem:
        return Problem("overloaded", f"{self.workers.waiting} images are waiting already; try again in a moment")

    async def examine(
        self, works: Sequence[Callable[[Job[Answer[T] | Refused]], Answer[T] | Refused]], receive: Receive
    ) -> list[Answer[T]]:
        """Answers in order, each image one job of the pool.

        One image per job: one request keeps all threads busy, and small requests pass between large ones.

        Args:
            works: for each image, a method of `Engine` with the image bound to it.
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
        try:
            # Most answers come before it is worth a task of its own to watch the connection.
            _, pending = await asyncio.wait(futures, timeout=min(UNWATCHED, self.settings.deadline))
            if pending and not await self._outlast(pending, receive):
                raise Problem(
                    "deadline",
                    f"no answer within {self.settings.deadline:g} seconds; send fewer or smaller images",
                )
            return _sort_out(futures)
        finally:
            if not all(future.done() for future in futures):
                self.workers.drop(jobs)

    async def _outlast(self, pending: Iterable[asyncio.Future[Any]], receive: Receive) -> bool:
        """Whether all of ``pending`` are done within what is left of the deadline, while the client waits.

        Raises:
            ClientGone: it went away first.
        """
        answers = asyncio.ensure_future(asyncio.wait(pending))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            left = max(0.0, self.settings.deadline - UNWATCHED)
            await asyncio.wait((answers, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not answers.done():
                raise ClientGone
            return answers.done()
        finally:
            gone.cancel()
            answers.cancel()


def announce(slot: Slot) -> None:
    """Log what answers under a name from now on."""
    loaded = slot.get()
    fields = {"model": slot.name, "digest": loaded.model.digest, "tested": loaded.tested}
    log.info("ready", extra={"fields": fields})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
