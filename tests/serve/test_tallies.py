"""Our own counters and histograms say what prometheus-client's would."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pocketdx_serve.tallies import counts, spreads

BOUNDS = (0.001, 0.25, 1.0, 30.0)
VALUES = (0.0, 0.0005, 0.001, 0.0011, 0.25, 0.9, 1.0, 29.0, 31.0, 1e9)


def samples(registry: CollectorRegistry) -> set[str]:
    """The lines, without the times at which its own were made, which ours leave out."""
    text = generate_latest(registry).decode()
    assert list(text_string_to_metric_families(text))
    return {line for line in text.splitlines() if "_created" not in line}


def test_the_text_is_that_of_prometheus_client() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    requests, seconds = counts("x_requests", "How many.", ["route", "status"]), spreads("x_s", "Long.", ["by"], BOUNDS)
    ours.register(requests)
    ours.register(seconds)
    their_requests = Counter("x_requests", "How many.", ["route", "status"], registry=theirs)
    their_seconds = Histogram("x_s", "Long.", ["by"], buckets=BOUNDS, registry=theirs)
    assert samples(ours) == samples(theirs), "before anything came"
    for route, number in (("/a", 3), ('/"quoted\\', 1)):
        for _ in range(number):
            requests.of(route, "200").total += 1
            their_requests.labels(route, "200").inc()
    for by in ("b", "a"):
        for value in VALUES:
            seconds.of(by).observe(value)
            their_seconds.labels(by).observe(value)
    seconds.of("never")
    their_seconds.labels("never")
    assert samples(ours) == samples(theirs)


def test_what_is_counted_between_two_looks_is_in_the_second() -> None:
    registry = CollectorRegistry()
    requests = counts("x", "How many.", ["by"])
    registry.register(requests)
    for total in (1, 2):
        requests.of("me").total += 1
        assert re.search(rf'^x_total{{by="me"}} {total}\.0$', generate_latest(registry).decode(), re.MULTILINE)
