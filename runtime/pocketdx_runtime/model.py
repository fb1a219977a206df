"""Open a model file and ask it: the whole runtime in one class."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakSet

import numpy as np

from pocketdx_runtime import image
from pocketdx_runtime.cpu import granted_cpus
from pocketdx_runtime.diagnosis import Diagnosis, diagnose
from pocketdx_runtime.errors import ImageError, ModelError, printable
from pocketdx_runtime.session import Session, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pocketdx_runtime.image import Source
    from pocketdx_runtime.manifest import Manifest

_T = TypeVar("_T")

_MODELS: WeakSet[Model] = WeakSet()
# Sessions that a forked child inherited: their threads stayed in the parent, so closing one crashes or hangs.
_INHERITED: list[Session] = []


class Model:
    """A PocketDx model file.

    Making one is cheap; the file is read and checked on first need, or by `load`. One model may be shared by
    any number of threads. It pickles as its path (or bytes) and settings, and opens again where it arrives.

    Args:
        source: path of the ``.onnx`` file, or one in onnxruntime's own format (``.ort``); or its bytes.
        threads: CPUs to use, the caller's included; never more than the process was granted
            (`granted_cpus`), which is also the default.
        batch_size: pictures decoded and computed together; bounds the memory used.

    Raises:
        ModelError: the path is not a file.
        ValueError: threads or batch_size below 1.
    """

    def __init__(self, source: str | Path | bytes, *, threads: int | None = None, batch_size: int = 16) -> None:
        if (threads is not None and threads < 1) or batch_size < 1:
            raise ValueError(f"threads and batch_size start at 1, got {threads} and {batch_size}")
        if isinstance(source, bytes):
            self._source: Path | bytes = source
            self._shown = "<bytes>"
        else:
            self._source = Path(source)
            self._shown = printable(str(source))
            _check_is_file(self._source, self._shown)
        self._threads = threads
        self.batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._opened: Session | None = None
        _MODELS.add(self)

    def __repr__(self) -> str:
        return f"Model({self._shown!r})"

    def __getstate__(self) -> dict[str, Any]:
        # Absolute: a worker may run in another folder.
        source = self._source if isinstance(self._source, bytes) else self._source.absolute()
        return {"source": source, "shown": self._shown, "threads": self._threads, "batch": self.batch_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source, self._shown = state["source"], state["shown"]
        self._threads, self.batch_size = state["threads"], state["batch"]
        self._reset()

    @property
    def name(self) -> str:
        """File name, or "<bytes>"."""
        return self._shown if isinstance(self._source, bytes) else printable(self._source.name)

    @property
    def path(self) -> Path | None:
        """Where the file is; None for bytes."""
        return None if isinstance(self._source, bytes) else self._source

    @property
    def manifest(self) -> Manifest:
        """What the file says about itself. Raises as `load`."""
        return self._session().manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the file as it was when it was opened, 64 hexadecimal digits. Raises as `load`."""
        return self._session().digest

    @property
    def size(self) -> int:
        """Of the file in bytes. Raises as `load`."""
        return self._session().size

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the graph. Raises as `load`."""
        return self._session().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the graph. Raises as `load`."""
        return self._session().outputs

    @property
    def threads(self) -> int:
        """CPUs that the model uses: those asked for, at most those granted."""
        granted = granted_cpus()
        return granted if self._threads is None else min(self._threads, granted)

    def load(self) -> Self:
        """Open the file now, to find a bad one early.

        Raises:
            ModelError: the file cannot be read, is not ONNX (or `.ort`), has weights in other files, or cannot be run.
            ManifestError: it has no valid manifest, or one that does not describe its graph.
        """
        self._session()
        return self

    def diagnose(self, images: Iterable[Source]) -> list[Diagnosis]:
        """Answer for each picture.

        Args:
            images: paths, encoded bytes, PIL images or arrays (see `image.decode`), in any mix.

        Raises:
            ImageError: of the first picture that cannot be decoded; `diagnose_each` goes on instead.
            ModelError: the model has no probabilities, gave one that is not a number, or see `load`.
        """
        return [_or_raise(each) for each in self.diagnose_each(images)]

    def diagnose_each(self, images: Iterable[Source]) -> Iterator[Diagnosis | ImageError]:
        """Answer picture by picture, in order, with an error in place of an answer for a picture that is bad.

        Pictures are taken from ``images`` a batch at a time, so memory stays flat however many there are.
        """
        manifest = self.manifest
        for row in self._rows(images, "probabilities"):
            yield row if isinstance(row, ImageError) else diagnose(row.tolist(), manifest)

    def embed(self, images: Iterable[Source]) -> NDArray[np.float32]:
        """Describe each picture by a vector of length 1, so that a dot product is the cosine: float32 [N, D].

        Raises:
            ImageError: of the first picture that cannot be decoded; `embed_each` goes on instead.
            ModelError: the model has no embedding, gave one that is not finite, or see `load`.
        """
        rows = [_or_raise(each) for each in self.embed_each(images)]
        return np.array(rows, np.float32).reshape(len(rows), self.manifest.embedding_size)

    def embed_each(self, images: Iterable[Source]) -> Iterator[NDArray[np.float32] | ImageError]:
        """Embed picture by picture, float32 [D] each; otherwise as `diagnose_each`."""
        return self._rows(images, "embedding")

    def run(self, pixels: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Run the graph itself, preprocessing included, on pixels of any size.

        Args:
            pixels: uint8 [N, H, W, 3], RGB; N >= 1.
            outputs: names, out of ``manifest.outputs``.

        Returns:
            float32 arrays by name; shapes as in the manifest's description of outputs.

        Raises:
            ValueError: pixels of another type or shape.
            ModelError: an output that the model does not have, onnxruntime failed, or see `load`.
        """
        return self._session().run(pixels, outputs)

    def _rows(self, images: Iterable[Source], output: str) -> Iterator[NDArray[np.float32] | ImageError]:
        """One row of an output, or an error, for each picture."""
        session = self._session()
        session.check_outputs([output])
        for batch in self._decoded(images, session):
            good = [each for each in batch if not isinstance(each, ImageError)]
            rows: Iterator[NDArray[np.float32]] = iter(session.run(np.stack(good), [output])[output] if good else ())
            for each in batch:
                if isinstance(each, ImageError):
                    yield each
                    continue
                row = next(rows)
                if not np.isfinite(row).all():
                    raise ModelError(
                        f"{self._shown}: its {output} are not finite numbers; the file is damaged or was "
                        "exported wrongly, export it again with `pocketdx export`"
                    )
                yield row

    def _decoded(self, images: Iterable[Source], session: Session) -> Iterator[list[NDArray[np.uint8] | ImageError]]:
        """Batches of resized pictures, decoded side by side where there are several CPUs."""
        if isinstance(images, (str, bytes, os.PathLike)):
            raise TypeError(f"expected a list of images, got one {type(images).__name__}")
        size = session.manifest.preprocessing.size
        numbered = enumerate(images)
        batch = list(islice(numbered, self.batch_size))

        def load(item: tuple[int, Source]) -> NDArray[np.uint8] | ImageError:
            number, source = item
            name = None if isinstance(source, (str, os.PathLike)) else f"image {number}"
            try:
                return image.load(source, size, name=name)
            except ImageError as error:
                return error

        with _mapping(min(session.threads, len(batch))) as in_order:
            while batch:
                yield list(in_order(load, batch))
                batch = list(islice(numbered, self.batch_size))

    def _session(self) -> Session:
        with self._lock:
            if self._opened is None:
                self._opened = Session.open(_read(self._source, self._shown), self._shown, self.threads)
            return self._opened


def _check_is_file(path: Path, shown: str) -> None:
    if path.is_dir():
        raise ModelError(f"{shown}: a folder; give the .onnx file in it")
    if not path.exists():
        raise ModelError(f"{shown}: no such file; make one with `pocketdx export`")
    if not path.is_file():
        raise ModelError(f"{shown}: a pipe, socket or device; give a regular file")


def _read(source: Path | bytes, shown: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ModelError(f"{shown}: cannot be read: {error.strerror or error}") from None


def _or_raise(value: _T | ImageError) -> _T:
    if isinstance(value, ImageError):
        raise value
    return value


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, on several threads if there is something to gain."""
    if workers < 2:
        yield map
        return
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and one picture does not need it

    with ThreadPoolExecutor(workers, thread_name_prefix="pocketdx-decode") as pool:
        yield pool.map


def _reopen_in_child() -> None:
    for model in list(_MODELS):
        if model._opened is not None:
            _INHERITED.append(model._opened)
        model._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reopen_in_child)
