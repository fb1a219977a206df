"""RUN.unfinished: what a training keeps on disk until its run is whole, so that it can go on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketdx_runtime.conform import conform, conform_fields
from pocketdx_runtime.errors import PocketDxError
from pocketdx_train.errors import CheckpointError, TrainError
from pocketdx_train.locks import locked
from pocketdx_train.prepare import Prepared
from pocketdx_train.run import DATA_FILE, HISTORY_FILE, RUN_FILE, Run, unfinished_folder, write_json
from pocketdx_train.settings import TrainSettings, flag, shown

_BEGUN, _LOCK = "begun.json", "lock"


@dataclass(frozen=True)
class Begun:
    """All that shapes a run's outcome: a resumed run must end as the uninterrupted one would have.

    Attributes:
        settings: how the network is trained.
        processes: how many train together.
        images: name and a digest of label, split and pixels of each image used, in order.
        teachers: SHA-256 (hex) of the weights that are learnt from.
    """

    settings: TrainSettings
    processes: int
    images: tuple[tuple[str, str], ...]
    teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        conform_fields(self)

    @classmethod
    def with_(cls, settings: TrainSettings, prepared: Prepared, processes: int, teachers: Sequence[Run] = ()) -> Begun:
        """What a run that begins now begins with."""
        images = []
        for record, split, pixels in zip(prepared.data.records, prepared.splits, prepared.data.digests, strict=True):
            if split:
                content = json.dumps([record.label, split, pixels])
                images.append((record.name, hashlib.sha256(content.encode()).hexdigest()[:16]))
        return cls(settings, processes, tuple(images), tuple(each.record.weights_digest for each in teachers))

    def differences(self, now: Begun) -> list[str]:
        """What is not as it was, in words."""
        found = [
            f"{flag(name)} was {shown(old)}"
            for name, old in vars(self.settings).items()
            if old != getattr(now.settings, name)
        ]
        if self.processes != now.processes:
            found.append(f"{self.processes} processes trained together, not {now.processes}")
        if self.teachers != now.teachers and self.settings.teacher == now.settings.teacher:
            found.append("--teacher had other weights")
        if self.images != now.images:
            found.append(_changed_images(dict(self.images), dict(now.images)))
        return found


def _changed_images(old: dict[str, str], new: dict[str, str]) -> str:
    kinds = {
        "gone": old.keys() - new.keys(),
        "new": new.keys() - old.keys(),
        "changed, or in another class or split": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    found = [f"{len(names)} images are {kind}, such as {min(names)}" for kind, names in kinds.items() if names]
    return ", ".join(found) or "the images are in another order"


@dataclass(frozen=True)
class Unfinished:
    """The folder of a run in the making.

    Attributes:
        out: where the run will be.
    """

    out: Path

    @property
    def folder(self) -> Path:
        """Where it is until then."""
        return unfinished_folder(self.out)

    @property
    def history(self) -> Path:
        """Figures of the epochs so far."""
        return self.folder / HISTORY_FILE

    @property
    def last(self) -> Path:
        """State to go on from."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """State of the best epoch."""
        return self.folder / "best.ckpt"

    @property
    def data(self) -> Path:
        """What was found out about the data."""
        return self.folder / DATA_FILE

    def check(self, *, resume: bool, force: bool) -> None:
        """Refuse early what would be refused after hours.

        Raises:
            TrainError: there is a run already, or one that is not finished, or the folder cannot be written.
            CheckpointError: there is nothing to resume.
        """
        if os.path.lexists(self.out):
            if not force:
                raise TrainError(f"{self.out}: exists already; choose another name, or --force to replace it")
            _check_replaceable(self.out, RUN_FILE)
        if resume and not (self.folder / _BEGUN).is_file():
            raise CheckpointError(f"{self.folder}: no unfinished run to go on with; leave --resume out")
        if _holds_something(self.folder) and not resume:
            if not force:
                raise TrainError(f"{self.folder}: an unfinished run; go on with --resume, or start over with --force")
            _check_replaceable(self.folder, _BEGUN)
        parent = next(each for each in self.folder.absolute().parents if each.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise TrainError(f"{self.out}: {parent} cannot be written to; choose another place with --out")

    @contextmanager
    def opened(self, begun: Begun, prepared: Prepared, *, resume: bool) -> Iterator[None]:
        """Make the folder, or check that a resumed run goes on as it began; ours alone while the body runs.

        Raises:
            CheckpointError: it was begun with other settings or images, its files are damaged, or another process
                trains it.
        """
        if resume:
            self._check_begun(begun)
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / _LOCK) as ours:
            if not ours:
                raise CheckpointError(f"{self.folder}: another process is training it; wait for it, or stop it")
            if not resume:
                self._clear()
                write_json(self.folder / _BEGUN, begun)
            splits = zip(prepared.data.records, prepared.splits, strict=True)
            names = {record.name: split for record, split in splits if split}
            write_json(self.data, {"report": prepared.report, "splits": names})
            try:
                yield
            except BaseException:
                if not self.last.is_file():  # nothing that a resumed run could go on from
                    self.remove()
                raise

    def _clear(self) -> None:
        for each in self.folder.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            elif each.name != _LOCK:
                each.unlink()

    def remove(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_begun(self, now: Begun) -> None:
        path = self.folder / _BEGUN
        try:
            begun: Begun = conform(json.loads(path.read_text("utf-8")), Begun, "")
        except (OSError, ValueError, PocketDxError) as problem:
            raise CheckpointError(f"{path}: damaged ({problem}); start over with --force") from problem
        if differences := begun.differences(now):
            raise CheckpointError(
                f"{self.folder}: begun otherwise ({'; '.join(differences)}); make it so again, "
                "or start over with --force"
            )


def _check_replaceable(folder: Path, marker: str) -> None:
    """--force replaces what PocketDx made, and never somebody's home."""
    if folder.is_symlink() or not folder.is_dir() or (_holds_something(folder) and not (folder / marker).is_file()):
        raise TrainError(f"{folder}: not replaced, because there is no {marker} in it; choose another name")


def _holds_something(folder: Path) -> bool:
    """Whether it is anything but missing or a folder that a kill at the very start has left."""
    if folder.is_dir():
        return any(each.name != _LOCK for each in folder.iterdir())
    return os.path.lexists(folder)
