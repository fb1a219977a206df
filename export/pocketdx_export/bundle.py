"""A bundle: the folder of files made from one run. It appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx

from pocketdx_export.card import model_card
from pocketdx_export.deploy import DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.golden import golden_archive
from pocketdx_export.graph import to_onnx
from pocketdx_export.parity.tolerances import TOLERANCES
from pocketdx_export.targets import TARGETS, Target
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.files import folder_written_aside, write_atomically
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.model import Model
from pocketdx_runtime.selftest import run_selftest
from pocketdx_train.run import Run
from pocketdx_train.run import digest as file_digest

MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
CARD_FILE = "MODEL_CARD.md"
SUMS_FILE = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        manifest: of the model, as its fp32 file has it.
        files: the model files, by target.
    """

    folder: Path
    manifest: Manifest
    files: tuple[tuple[Target, Path], ...]

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read a bundle and check its sums.

        Raises:
            ExportError: it is no bundle, or a file in it is missing or has changed.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise ExportError(f"{folder}: not a bundle; make one with `pocketdx export RUN --out {folder}`")
        try:
            content = json.loads(path.read_text("utf-8"))
            by_name = {target.name: target for target in TARGETS}
            files = tuple((by_name[each["target"]], folder / each["file"]) for each in content["files"])
            manifest = Manifest.from_json(json.dumps(content["model"]), str(path))
        except (ValueError, KeyError, TypeError) as problem:
            raise ExportError(f"{path}: damaged ({problem}); export the run again") from problem
        check_sums(folder)
        return cls(folder, manifest, files)


def export_run(
    run: Run,
    out: Path,
    targets: tuple[Target, ...],
    *,
    name: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export `run` into the new folder `out`; each file is opened and answers the golden inputs first.

    Args:
        run: trained.
        out: the bundle's folder.
        targets: what to write.
        name: of the model; the run's folder's name without it.
        force: replace a bundle that is there.
        say: called with a line for people after each file.

    Raises:
        ExportError: a file cannot be made, or does not run, or does not answer as the network does.
        OutputError: `out` exists, or cannot be written.
    """
    manifest = manifest_of(run, name or run.folder.resolve().name)
    with folder_written_aside(out, overwrite=force, marker=MANIFEST_FILE) as aside:
        module = DeployModule(run.network(), run.record.temperature).eval()
        golden = aside / GOLDEN_FILE
        golden.write_bytes(golden_archive(module, TOLERANCES.golden()))
        written = []
        for target in targets:
            path = aside / target.file_name()
            path.write_bytes(_content(target, module, manifest))
            worst = _checked(path, golden)
            written.append({"target": target.name, "file": path.name, "bytes": path.stat().st_size})
            say(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB; self-test passed, logits within {worst:.1e}")
        content = {"model": manifest.to_dict(), "files": written}
        (aside / MANIFEST_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (aside / CARD_FILE).write_text(model_card(manifest, run), "utf-8")
        (aside / SUMS_FILE).write_text(sums(aside), "utf-8")
    return Bundle.open(out)


def manifest_of(run: Run, name: str) -> Manifest:
    """What the files exported from `run` say about themselves."""
    record = run.record
    network = run.network()
    return Manifest(
        name=name,
        labels=record.labels,
        architecture=record.settings.architecture,
        embedding_size=network.embedding_size,
        preprocessing=record.preprocessing,
        temperature=record.temperature,
        thresholds=record.thresholds,
        data_fingerprint=record.data_fingerprint,
        weights_digest=record.weights_digest,
        metrics=record.metrics,
        software={**record.software, "onnx": version("onnx"), "onnxruntime": version("onnxruntime")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _content(target: Target, module: DeployModule, manifest: Manifest) -> bytes:
    content: bytes = to_onnx(module, manifest).SerializeToString(deterministic=True)
    if len(content) > onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(f"{target.name}: over 2 GB, more than one ONNX file can hold")
    return content


def _checked(path: Path, golden: Path) -> float:
    """The largest difference in logits on the golden inputs."""
    try:
        result = run_selftest(Model(path), golden)
    except PocketDxError as problem:
        raise ExportError(f"{path.name}: written, but does not run here ({problem})") from problem
    if not result:
        differences = ", ".join(f"{each.output} {each.max_difference:.2g}" for each in result.checks)
        raise ExportError(f"{path.name}: answers differ from PyTorch's on the golden inputs ({differences})")
    return next(each.max_difference for each in result.checks if each.output == "logits")


def sums(folder: Path) -> str:
    """`sha256sum`'s listing of all files in `folder` but the listing itself."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS_FILE)
    return "".join(f"{file_digest(path)}  {path.name}\n" for path in files)


def add_file(folder: Path, name: str, content: str) -> None:
    """Write a report into a bundle, in place of one that may be there, and list it in the sums."""
    write_atomically(folder / name, content.encode(), overwrite=True)
    write_atomically(folder / SUMS_FILE, sums(folder).encode(), overwrite=True)


def check_sums(folder: Path) -> None:
    """Compare a bundle's files with its sums.

    Raises:
        ExportError: one is missing or has changed.
    """
    try:
        lines = (folder / SUMS_FILE).read_text("utf-8").splitlines()
    except OSError as problem:
        raise ExportError(f"{folder / SUMS_FILE}: missing; copy the bundle again") from problem
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{path}: missing; copy the bundle again")
        if file_digest(path) != digest:
            raise ExportError(f"{path}: has changed since it was exported (SHA-256 differs); copy the bundle again")
