"""The models that one server holds: each a slot with a name, and in it the model file of the moment."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pocketdx_runtime.errors import ModelError, printable
from pocketdx_runtime.selftest import run_selftest
from pocketdx_serve.engine import Engine, warm_up
from pocketdx_serve.errors import ServeError
from pocketdx_serve.problems import Problem
from pocketdx_serve.schemas import ModelRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pocketdx_runtime.image import Limits
    from pocketdx_runtime.model import Model

GOLDEN: Final = "golden.npz"
"""The bundle's golden inputs; looked for beside the model file."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class State(StrEnum):
    """How far a model is; the values but READY are the reasons of the 503 that says no."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


_WHY: Final = {
    State.STARTING: "the model is being loaded; try again in a moment",
    State.FAILED: "the model did not pass its self-test; see the server's log",
}


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells, without reading it, that a file is another one than before."""

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """The stamp of the file at ``path``; None where there is none, or none that can be looked at."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that clients download, with their SHA-256 in hexadecimal."""

    data: bytes
    digest: str

    @classmethod
    def read(cls, path: Path) -> Blob:
        """Read a file."""
        data = path.read_bytes()
        return cls(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Loaded:
    """A model file that has passed its self-test. It never changes: a new file is another one of these.

    Attributes:
        model: opened.
        engine: decodes for it and asks it.
        file: the model file itself, for devices that run it themselves; None for a model made from bytes that
            were not kept.
        golden: the golden inputs beside it, None where there are none.
        tested: how it was tested: "golden" (compared with the full model's answers) or "warm-up".
    """

    model: Model
    engine: Engine
    file: Blob | None
    golden: Blob | None
    tested: str

    @cached_property
    def reference(self) -> dict[str, str]:
        """What an answer says of the model that gave it: `schemas.ModelRef`."""
        manifest = self.model.manifest
        reference = ModelRef(
            name=manifest.name,
            digest=self.model.digest,
            precision=manifest.precision,
            intended_use=manifest.intended_use,
        )
        return reference.model_dump()


def prepare(model: Model, limits: Limits) -> Loaded:
    """Open a model and test it: with the golden inputs beside it, or else by a warm-up.

    Raises:
        ModelError, ManifestError: the file cannot be opened or run, it changed meanwhile, or the golden inputs
            beside it cannot be read or belong to another model.
        ServeError: its answers are not those it should give.
    """
    warm_up(model)
    if model.path is None:
        return Loaded(model, Engine(model, limits), None, None, "warm-up")
    try:
        file = Blob.read(model.path)
        golden = Blob.read(model.path.with_name(GOLDEN)) if model.path.with_name(GOLDEN).is_file() else None
    except OSError as error:
        raise ModelError(f"{printable(error.filename or model.name)}: cannot be read: {error.strerror}") from None
    if file.digest != model.digest:
        raise ModelError(f"{model.name}: the file changed while it was being loaded; copy it aside, then rename it")
    if golden is not None:
        test = run_selftest(model, model.path.with_name(GOLDEN))
        if not test:
            worst = next(check for check in test.checks if not check)
            raise ServeError(
                f"{model.name}: fails its self-test, {worst.output} differ by {worst.max_difference:.3g} from "
                f"{GOLDEN} beside it, more than {worst.tolerance:.3g}; give the file and {GOLDEN} of one bundle"
            )
    return Loaded(model, Engine(model, limits), file, golden, "golden" if golden else "warm-up")


class Slot:
    """A name in the API, and the model file that answers under it now.

    Attributes:
        name: in paths and ``?model=``.
        model: the one to load; after a reload the first one, until then maybe not opened.
        path: of its file; None for a model made from bytes.
        state: of the first load. A reload that fails changes nothing.
        loaded: what answers; None unless READY. Replaced as a whole, so whoever took it keeps a consistent one.
        stamp: of the file that was tried last, good or bad.
    """

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.model = model
        self.path = model.path
        self.state = State.STARTING
        self.loaded: Loaded | None = None
        self.stamp = Stamp.of(self.path) if self.path else None

    def fill(self, loaded: Loaded) -> None:
        """Let ``loaded`` answer from now on."""
        self.loaded = loaded
        self.state = State.READY

    def get(self) -> Loaded:
        """What answers now.

        Raises:
            Problem: 503, not loaded yet, or its self-test failed.
        """
        if self.loaded is None:
            raise Problem(self.state.value, _WHY.get(self.state, _WHY[State.STARTING]))
        return self.loaded


class Models:
    """All slots by name; the first is the default.

    Raises:
        ServeError: no model, or a name that does not fit into an address.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        if not models:
            raise ServeError("no model to serve; name at least one file")
        for name in models:
            check_name(name)
        self._slots = {name: Slot(name, model) for name, model in models.items()}

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    @property
    def default(self) -> Slot:
        """The first."""
        return next(iter(self._slots.values()))

    def find(self, name: str | None) -> Slot:
        """The slot of that name, the default for None.

        Raises:
            Problem: 404, there is no such model.
        """
        if name is None:
            return self.default
        slot = self._slots.get(name)
        if slot is None:
            raise Problem("model-missing", f"the models here are: {', '.join(self._slots)}")
        return slot


def check_name(name: str) -> str:
    """``name`` if it can stand in an address.

    Raises:
        ServeError: it cannot.
    """
    if NAME.fullmatch(name) is None:
        raise ServeError(
            f"{printable(name)!r} cannot name a model in an address; give another with NAME=FILE, "
            "out of letters, digits, '.', '_' and '-'"
        )
    return name


def name_of(path: str | Path) -> str:
    """The name of a model that was given none: its file's, without ".onnx" and what an address cannot hold."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.removesuffix(".onnx")).strip("-._")[:100]
    return stem or "model"


def named(arguments: tuple[str, ...]) -> dict[str, str]:
    """Paths by name, from the arguments of the command line: FILE or NAME=FILE.

    Raises:
        ServeError: a name twice, or one that does not fit into an address.
    """
    paths: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or NAME.fullmatch(name) is None or Path(argument).exists():
            name, path = name_of(argument), argument
        if name in paths:
            raise ServeError(
                f"two models named {name}: {printable(paths[name])} and {printable(path)}; "
                f"name one of them, as in other={printable(path)}"
            )
        paths[name] = path
    return paths
