"""Whether the answer to a request is still wanted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pocketdx_serve.body import ClientGone
from pocketdx_serve.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive

UNWATCHED: Final = 0.5
"""Seconds for which a request's connection is not watched: a client that went away is noticed that much later. Most
answers come before it is worth a task of its own."""


def too_late(deadline: float) -> Problem:
    """504, no answer within ``deadline`` seconds."""
    return Problem("deadline", f"no answer within {deadline:g} seconds; send fewer or smaller images")


class Watch:
    """Gives a request up when its client goes away or its deadline passes. For the event loop's thread.

    Attributes:
        ended: why it was given up; None if it was not.

    Args:
        give_up: called once then.
        receive: of the request, whose body has been read; it tells when the client goes away.
        deadline: in seconds from now.
    """

    def __init__(self, give_up: Callable[[], None], receive: Receive, deadline: float) -> None:
        self.ended: Problem | ClientGone | None = None
        self._give_up = give_up
        self._receive = receive
        self._deadline = deadline
        self._look: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(min(UNWATCHED, deadline), self._begin)

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._look is not None:
            self._look.cancel()

    def _begin(self) -> None:
        self._look = asyncio.get_running_loop().create_task(self._until_ended())

    async def _until_ended(self) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._deadline - UNWATCHED)):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
            self.ended = ClientGone()
        except TimeoutError:
            self.ended = too_late(self._deadline)
        self._give_up()
