"""Counters and histograms that cost next to nothing to count with, for a registry of prometheus-client to collect.

Its own take a lock and look at their labels for every number: 7 us for a request for one image, with these 2. They
are for one thread that counts and any that read.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

T = TypeVar("T")


class Count:
    """One number that grows."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class Spread:
    """How many of the values that came lie at or below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Bound, and how many values are not above it, as Prometheus has them."""
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Family(Collector, Generic[T]):
    """Tallies of one name, one for each set of labels that was asked for.

    Args:
        make: a new tally.
        describe: the metric with what is in all tallies, by their labels.
    """

    def __init__(self, make: Callable[[], T], describe: Callable[[dict[tuple[str, ...], T]], Metric]) -> None:
        self._make, self._describe = make, describe
        self._tallies: dict[tuple[str, ...], T] = {}

    def of(self, *labels: str) -> T:
        """The tally of some labels."""
        tally = self._tallies.get(labels)
        if tally is None:
            tally = self._tallies[labels] = self._make()
        return tally

    def collect(self) -> Iterator[Metric]:
        """As registries call it."""
        yield self._describe(self._tallies.copy())


def counts(name: str, text: str, labels: Sequence[str]) -> Family[Count]:
    """A family of counters; Prometheus adds ``_total`` to the name."""

    def describe(tallies: dict[tuple[str, ...], Count]) -> Metric:
        metric = CounterMetricFamily(name, text, labels=labels)
        for values, tally in tallies.items():
            metric.add_metric(values, tally.total)
        return metric

    return Family(Count, describe)


def spreads(name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Family[Spread]:
    """A family of histograms."""

    def describe(tallies: dict[tuple[str, ...], Spread]) -> Metric:
        metric = HistogramMetricFamily(name, text, labels=labels)
        for values, tally in tallies.items():
            metric.add_metric(values, tally.buckets(), tally.total)
        return metric

    return Family(lambda: Spread(bounds), describe)
