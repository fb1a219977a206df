"""Model files as parity sees them: where they are, and what they say about themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketdx_export.errors import ParityError
from pocketdx_export.targets import TARGETS, Target
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.model import Model
from pocketdx_train.architectures import ARCHITECTURES
from pocketdx_train.run import Run
from pocketdx_train.run import digest as file_digest

if TYPE_CHECKING:
    from pocketdx_export.bundle import Bundle


@dataclass(frozen=True)
class ModelFile:
    """One file to compare.

    Attributes:
        path: where it is; a folder for formats that are one.
        format: of `targets.TARGETS`.
        target: its name there, "" for a file of none.
        manifest: the file's own where it can be read, else the bundle's.
        failed: why there is no such file though it was asked for; "" where there is one.
    """

    path: Path
    format: str
    target: str
    manifest: Manifest
    failed: str = ""

    @classmethod
    def at(cls, path: Path) -> ModelFile:
        """A single ONNX file.

        Raises:
            ParityError: it is of another format, which does not say enough about itself.
            ModelError, ManifestError: it cannot be opened.
        """
        if path.suffix != ".onnx":
            raise ParityError(f"{path}: only an .onnx file can be compared by itself; give the bundle it is in")
        manifest = Model(path).load().manifest
        target = next((t.name for t in TARGETS if t.format == "onnx" and t.precision == manifest.precision), "")
        return cls(path, "onnx", target, manifest)

    def columns(self, labels: Sequence[str]) -> list[int]:
        """For each of the run's labels, its column in this file's outputs; in order where the names are others."""
        own = self.manifest.labels
        return [own.index(label) for label in labels] if set(own) == set(labels) else list(range(len(labels)))

    def facts(self) -> Mapping[str, Any]:
        """For an auditor."""
        return {"sha256": digest_of(self.path), "software": self.manifest.software}


def files_of(bundle: Bundle) -> tuple[ModelFile, ...]:
    """The files of a bundle, and those that could not be exported.

    Raises:
        ModelError, ManifestError: an ONNX file cannot be opened.
    """
    by_name = {target.name: target for target in TARGETS}
    missing = tuple(_missing(bundle, by_name[name], why) for name, why in bundle.failed.items() if name in by_name)
    return (*(_present(bundle, target, path) for target, path in bundle.files), *missing)


def _present(bundle: Bundle, target: Target, path: Path) -> ModelFile:
    if target.format == "onnx":
        return replace(ModelFile.at(path), target=target.name)
    return ModelFile(path, target.format, target.name, replace(bundle.manifest, precision=target.precision))


def _missing(bundle: Bundle, target: Target, why: str) -> ModelFile:
    manifest = replace(bundle.manifest, precision=target.precision)
    return ModelFile(bundle.folder / target.file_name(), target.format, target.name, manifest, why)


def check_comparable(file: ModelFile, run: Run) -> None:
    """Refuse what has nothing to be compared.

    Raises:
        ParityError: other numbers of classes, another input size, another embedding; no scores at all.
    """
    manifest = file.manifest
    if not {"logits", "probabilities"} & set(manifest.outputs):
        raise ParityError(f"{file.path}: has no output logits or probabilities; export it with `pocketdx export`")
    embedding_size = ARCHITECTURES[run.record.settings.architecture].embedding_size
    for what, ours, theirs in (
        ("classes", len(manifest.labels), len(run.record.labels)),
        ("pixels a side", manifest.preprocessing.size, run.record.preprocessing.size),
        ("values in the embedding", manifest.embedding_size, embedding_size),
    ):
        if ours != theirs:
            raise ParityError(
                f"{file.path}: has {ours} {what}, {run.folder} has {theirs}; "
                "name the run that it was exported from with --against"
            )


def digest_of(path: Path) -> str:
    """SHA-256 of a file; of a folder, over its files' names and digests."""
    if not path.is_dir():
        return file_digest(path)
    listing = "".join(
        f"{file_digest(each)}  {each.relative_to(path).as_posix()}\n"
        for each in sorted(path.rglob("*"))
        if each.is_file()
    )
    return hashlib.sha256(listing.encode()).hexdigest()
