"""What a monitoring system asks for: counts and times in Prometheus' text format. No content, no client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

from pocketdx_serve.errors import ServeError
from pocketdx_serve.tallies import counts, spreads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pocketdx_serve.engine import Answer
    from pocketdx_serve.models import Slot
    from pocketdx_serve.tallies import Count, Family, Spread

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one app, in a registry of their own: two apps in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, label: str) -> Family[Spread]:
            family = spreads(f"pocketdx_{name}", text, [label], _SECONDS)
            registry.register(family)
            return family

        def counter(name: str, text: str, *labels: str) -> Family[Count]:
            family = counts(f"pocketdx_{name}", text, labels)
            registry.register(family)
            return family

        self.requests = counter("requests", "By route and status; 499: the client went away.", "route", "status")
        self.latency = histogram("request_seconds", "From a request's header to the end of its answer.", "route")
        self.queue = histogram("queue_seconds", "An image's wait for a thread.", "model")
        self.decode = histogram("decode_seconds", "Decoding and resizing an image.", "model")
        self.inference = histogram("inference_seconds", "An image in the model.", "model")
        self.images = counter("images", "Images answered.", "model")
        self.rejected = counter("rejected", "Requests refused, by reason.", "reason")
        self.reloads = counter("reloads", "Changed files taken up or not.", "what", "outcome")
        self.in_flight = 0
        self.watch("in_flight", "Requests being answered.", lambda: self.in_flight)
        text = "1 for the file that answers."
        self.model = Gauge("pocketdx_model_info", text, ("model", "digest"), registry=registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for when somebody looks."""
        Gauge(f"pocketdx_{name}", text, registry=self.registry).set_function(value)

    def request(self, route: str, status: int, reason: str | None, seconds: float) -> None:
        """Count one request."""
        self.requests.of(route, str(status)).total += 1
        self.latency.of(route).observe(seconds)
        if reason is not None:
            self.rejected.of(reason).total += 1

    def refusals(self, route: str, status: int, reason: str) -> Callable[[], None]:
        """As `request` for one that is refused unread, with all looked up beforehand; counts one at each call."""
        self.latency.of(route)
        tallies = self.requests.of(route, str(status)), self.rejected.of(reason)

        def count() -> None:
            for tally in tallies:
                tally.total += 1

        return count

    def answered(self, model: str, answers: Sequence[Answer[Any]]) -> None:
        """Count the images of one answer, and where their time went."""
        self.images.of(model).total += len(answers)
        queue, decode, inference = self.queue.of(model), self.decode.of(model), self.inference.of(model)
        for answer in answers:
            queue.observe(answer.queue)
            decode.observe(answer.decode)
            inference.observe(answer.inference)

    def answering(self, slot: Slot) -> None:
        """Note which file answers under a name."""
        for labels in [each.labels for family in self.model.collect() for each in family.samples]:
            if labels["model"] == slot.name:
                self.model.remove(labels["model"], labels["digest"])
        self.model.labels(slot.name, slot.get().model.digest).set(1)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def serve(self, host: str, port: int) -> int:
        """Answer on an address of their own, from a daemon thread; returns the port.

        Raises:
            ServeError: the port is taken or not allowed.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise ServeError(f"--metrics-port {port} on {host}: {error.strerror or error}; choose another") from None
        return int(server.server_address[1])
