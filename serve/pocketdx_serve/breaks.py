"""While the server is full: short breaks of the event loop, so that requests gather."""

from __future__ import annotations

import asyncio
from time import sleep as _sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BREAK_SECONDS = 0.003
"""By which a refusal is later. Longer gains no more (benchmarks/overload.py)."""

TURNS_ALONE = 2
"""Turns of the event loop after which no more connections wait: what is accepted in one is known of in the next."""


class Breaks:
    """Lets the event loop sleep between two turns in which it refuses.

    To wake up for each request, and to get Python's lock from the threads at work, takes longer than to refuse it; what
    has gathered during a break is refused in one go. Network cards and their drivers do the same under load.
    All methods are for the event loop's thread.

    Args:
        supplied: whether the threads have work for longer than a break.
    """

    def __init__(self, supplied: Callable[[], bool]) -> None:
        self._supplied = supplied
        self._due = False
        self._alone = 0

    def soon(self) -> None:
        """Take a break once this turn of the event loop is over."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._take)

    def connected(self) -> None:
        """Note that a connection came. More may wait: uvloop takes one a turn, and breaks would keep them from it."""
        self._alone = 0

    def _take(self) -> None:
        if self._alone < TURNS_ALONE:
            self._alone += 1
            asyncio.get_running_loop().call_soon(self._take)
            return
        self._due = False
        if self._supplied():
            _sleep(BREAK_SECONDS)
