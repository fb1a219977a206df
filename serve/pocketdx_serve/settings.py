"""What an operator may choose about the server, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pocketdx_serve.errors import ServeError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and sizes of one server.

    Attributes:
        threads: images decoded and diagnosed at the same time, >= 1; None takes the CPUs really granted.
        queue: images that may wait for a thread, >= 0. A request that does not fit is answered 503 at once.
        deadline: seconds from a fully received request to its answer, > 0; then 504.
        read_timeout: seconds without a byte before a request body is given up with 408, > 0.
        max_bytes: bytes of one request body, >= 1; more is 413.
        max_held: bytes of all request bodies held at one time, >= max_bytes; more is 503. This bounds memory
            under many large uploads at once.
        max_pixels: width x height of one image, >= 1, checked before decoding; more is 413.
        max_side: pixels per side of one image, >= 1; more is 413.
        max_images: images in one request, >= 1 and <= threads + queue; more is 413.
        rate: images a second for each API key, > 0; more is 429. None: as many as there is room for.
        reload_interval: seconds between two looks at the model files and the keys, > 0.

    Raises:
        ServeError: a value is out of its range.
    """

    threads: int | None = None
    queue: int = 64
    deadline: float = 30.0
    read_timeout: float = 10.0
    max_bytes: int = 64 * MIB
    max_held: int = 512 * MIB
    max_pixels: int = 50_000_000
    max_side: int = 32_768
    max_images: int = 16
    rate: float | None = None
    reload_interval: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            smallest = 0 if field.name == "queue" else 1
            if field.name in ("deadline", "read_timeout", "reload_interval", "rate"):
                if value is not None and not 0 < value < float("inf"):
                    raise ServeError(f"{field.name} = {value}: give a number above 0")
            elif value is not None and value < smallest:
                raise ServeError(f"{field.name} = {value}: give at least {smallest}")
        if self.max_held < self.max_bytes:
            raise ServeError(f"max_held = {self.max_held}: give at least max_bytes ({self.max_bytes})")
        if self.max_images > self.queue + (self.threads or 1):
            raise ServeError(
                f"max_images = {self.max_images}: a request of that many never fits a queue of {self.queue}; "
                "raise queue or lower max_images"
            )
