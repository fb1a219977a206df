"""How often somebody may ask: a token bucket for each key."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from pocketdx_serve.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable


class Rates:
    """A bucket for each name; names come from the key ring, so there are only so many.

    Args:
        rate: images a second, in the long run; above 0.
        burst: images that may come at once after a pause, at least 1.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, who: str, images: int = 1) -> None:
        """Count ``images``; more than a bucket holds are owed, and waited for by the next request.

        Raises:
            Problem: 429 with Retry-After, the bucket is empty; nothing was counted.
        """
        now = self._clock()
        level, since = self._buckets.get(who, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        if level < 1:
            wait = math.ceil((1 - level) / self.rate)
            raise Problem(
                "rate-limited",
                f"this key may send {self.rate:g} images a second; try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        self._buckets[who] = (level - images, now)

    def owe(self, who: str, images: int) -> None:
        """Count ``images`` more of a request that was let in before their number was known."""
        level, since = self._buckets.get(who, (self.burst, self._clock()))
        self._buckets[who] = (level - images, since)
