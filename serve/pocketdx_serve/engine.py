"""From the bytes of one image to one answer: what a thread of the pool does."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

from pocketdx_runtime.diagnosis import diagnose
from pocketdx_runtime.errors import ImageError
from pocketdx_runtime.image import Limits, load
from pocketdx_serve.errors import ServeError
from pocketdx_serve.problems import kind_of
from pocketdx_serve.workers import Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pocketdx_runtime.diagnosis import Diagnosis
    from pocketdx_runtime.model import Model
    from pocketdx_serve.workers import Asking, Job

T = TypeVar("T")
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Vector = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Outputs = dict[str, Vector]

LIGHT: Final = 100_000
"""Bytes of an encoded image that is decoded in a moment, a millisecond or two; nobody should wait for a photograph."""
LIGHT_PIXELS: Final = 1_000_000
"""The same of one that is sent as pixels."""

log = logging.getLogger("pocketdx.serve")


def is_light(image: bytes | Pixels) -> bool:
    """Whether it may be examined together with others that wait."""
    return len(image) <= LIGHT if isinstance(image, bytes) else image.nbytes <= LIGHT_PIXELS


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the model says of one image, and the seconds spent in the queue, decoding, and in the model."""

    value: T
    queue: float
    decode: float
    inference: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer: a reason of ``problems.KINDS`` and one sentence, without the input's name."""

    reason: str
    detail: str


def warm_up(model: Model) -> None:
    """Open the model and let it answer once for every output that is served.

    Raises:
        ModelError, ManifestError: the file cannot be opened or run.
        ServeError: the answer is not finite.
    """
    model.load()
    manifest = model.manifest
    size = manifest.preprocessing.size
    grey = np.full((size, size, 3), 128, dtype=np.uint8)
    numbers: list[float] = []
    if "probabilities" in manifest.outputs:
        numbers += model.diagnose([grey])[0].probabilities.values()
    if "embedding" in manifest.outputs:
        numbers += model.embed([grey])[0].tolist()
    if not numbers:
        raise ServeError(f"{model.name}: has neither probabilities nor an embedding to serve; export it again")
    if not all(map(math.isfinite, numbers)):
        raise ServeError(f"{model.name}: answers NaN or infinity to a grey image; export it again")


class Engine:
    """One model with the limits for its images; safe to call from many threads.

    Refusals are returned, not raised: an exception would carry its frames, and so the image, elsewhere.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits

    def diagnose(self, data: bytes, job: Job[Answer[Diagnosis] | Refused]) -> Asking[Answer[Diagnosis] | Refused]:
        """Diagnose one encoded image."""
        return self._examine(data, job, ["probabilities"], self._diagnosis)

    def embed(self, data: bytes, job: Job[Answer[Vector] | Refused]) -> Asking[Answer[Vector] | Refused]:
        """Embed one encoded image: float32 [D], L2-normalised."""
        return self._examine(data, job, ["embedding"], lambda row: self._finite(row, "embedding"))

    def infer(
        self, image: bytes | Pixels, outputs: Sequence[str], job: Job[Answer[Outputs] | Refused]
    ) -> Asking[Answer[Outputs] | Refused]:
        """Run the graph on one image, encoded or uint8 [H, W, 3] of any size, for ``outputs``: float32 [1, ...]."""
        return self._examine(image, job, outputs, lambda row: {name: each[np.newaxis] for name, each in row.items()})

    def _examine(
        self,
        image: bytes | Pixels,
        job: Job[Answer[T] | Refused],
        outputs: Sequence[str],
        finish: Callable[[Outputs], T],
    ) -> Asking[Answer[T] | Refused]:
        started = time.perf_counter()
        try:
            pixels = self._decode(image) if isinstance(image, bytes) else image
            if isinstance(pixels, Refused):
                return pixels
            decoded = time.perf_counter()
            if job.dropped:
                return Refused("deadline", "given up after decoding")
            key = (self, tuple(outputs), pixels.shape)
            row, seconds = yield Ask(key, pixels, partial(self._run, outputs))
            value = finish(row)
        except MemoryError:
            return Refused("out-of-memory", "try again later, or send a smaller image")
        return Answer(value, started - job.queued_at, decoded - started, seconds)

    def _run(self, outputs: Sequence[str], pictures: list[Pixels]) -> list[tuple[Outputs, float]]:
        """The outputs of the graph for each picture, all of one size, and the seconds that each had to wait for them.

        Not `Model.diagnose`, which would decode: the pool has done that.
        """
        started = time.perf_counter()
        batch = pictures[0][np.newaxis] if len(pictures) == 1 else np.stack(pictures)
        found = self.model.run(batch, outputs)
        seconds = time.perf_counter() - started
        return [({name: each[number] for name, each in found.items()}, seconds) for number in range(len(pictures))]

    def _diagnosis(self, row: Outputs) -> Diagnosis:
        return diagnose(self._finite(row, "probabilities").tolist(), self.model.manifest)

    def _finite(self, row: Outputs, output: str) -> Vector:
        if not np.isfinite(row[output]).all():
            raise ServeError(f"{self.model.name}: its {output} are not finite numbers; export it again")
        return row[output]

    def _decode(self, data: bytes) -> Pixels | Refused:
        size = self.model.manifest.preprocessing.size
        try:
            return load(data, size, limits=self.limits, name="image")
        except ImageError as error:
            return Refused(kind_of(error.reason).reason, error.detail)
        except MemoryError:
            raise
        except Exception:
            # A decoder that stumbles over a picture in a way nobody foresaw. The fault is still the
            # picture's, and the next one is fine; but we want to know.
            log.exception("an image broke the decoder")
            return Refused("corrupt", "the image cannot be decoded; export it again from the source")
