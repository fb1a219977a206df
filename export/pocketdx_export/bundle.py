"""A bundle: the folder of files made from one run. It appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pocketdx_export import formats
from pocketdx_export.backends import backends_for
from pocketdx_export.card import model_card
from pocketdx_export.deploy import DeployModule
from pocketdx_export.errors import ExportError
from pocketdx_export.golden import add_own_answers, golden_archive
from pocketdx_export.material import Material
from pocketdx_export.parity.tolerances import TOLERANCES
from pocketdx_export.quantize.budget import DEFAULT_BUDGET, Budget
from pocketdx_export.quantize.trial import Timer
from pocketdx_export.targets import TARGETS, Target
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.files import folder_written_aside, write_atomically
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.selftest import check_outputs, read_golden
from pocketdx_train.run import Run
from pocketdx_train.run import digest as file_digest

MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
CARD_FILE = "MODEL_CARD.md"
SUMS_FILE = "SHA256SUMS"
# Formats that hold the ONNX graph of their precision, and so must answer as it does.
_OF_THE_GRAPH = ("onnx", "ort")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        manifest: of the model, as its fp32 file has it.
        files: the model files, by target.
        failed: why a target that was asked for is not there, by its name.
    """

    folder: Path
    manifest: Manifest
    files: tuple[tuple[Target, Path], ...]
    failed: Mapping[str, str]

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
            failed = {str(each["target"]): str(each["reason"]) for each in content.get("failed", ())}
            manifest = Manifest.from_json(json.dumps(content["model"]), str(path))
        except (ValueError, KeyError, TypeError) as problem:
            raise ExportError(f"{path}: damaged ({problem}); export the run again") from problem
        check_sums(folder)
        return cls(folder, manifest, files, failed)


def export_run(
    run: Run,
    out: Path,
    targets: tuple[Target, ...],
    *,
    name: str | None = None,
    data: Path | None = None,
    cache: Path | None = None,
    force: bool = False,
    budget: Budget | None = DEFAULT_BUDGET,
    qat: bool = False,
    timer: Timer | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export `run` into the new folder `out`; each file is opened and answers the golden inputs first.

    A target that fails leaves the others as they are; the bundle names it and the reason.

    Args:
        run: trained.
        out: the bundle's folder.
        targets: what to write.
        name: of the model; the run's folder's name without it.
        data: the run's labelled images, for precisions that are calibrated.
        cache: folder of decoded images; None is the default one.
        force: replace a bundle that is there.
        budget, qat, timer: of int8; see `Material`.
        say: called with a line for people after each file.

    Raises:
        ExportError: not one file can be made that runs and answers as the network does.
        OutputError: `out` exists, or cannot be written.
    """
    manifest = manifest_of(run, name or run.folder.resolve().name)
    with folder_written_aside(out, overwrite=force, marker=MANIFEST_FILE) as aside:
        module = DeployModule(run.network(), run.record.temperature).eval()
        material = Material(run, module, manifest, data, cache, say, budget, qat, timer)
        (aside / GOLDEN_FILE).write_bytes(golden_archive(module, TOLERANCES.golden()))
        written, failed = [], []
        for target in targets:
            path = aside / target.file_name()
            try:
                formats.write(target, material, path)
                _remember_answers(target, material, aside / GOLDEN_FILE)
                outcome = checked(target, path, material.manifest(target.precision), aside / GOLDEN_FILE)
            except PocketDxError as problem:
                _remove(path)
                failed.append({"target": target.name, "reason": str(problem)})
                say(f"{target.name}: FAILED: {problem}")
                continue
            written.append({"target": target.name, "file": path.name, "bytes": size_of(path), "checked": outcome.by})
            say(f"{path.name}: {size_of(path) / 1e6:.2f} MB; {outcome}")
        for name, report in material.reports.items():
            (aside / name).write_bytes(report)
        if not written:
            raise ExportError("; ".join(each["reason"] for each in failed) or "no target to export")
        content = {"model": manifest.to_dict(), "files": written, "failed": failed}
        (aside / MANIFEST_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (aside / CARD_FILE).write_text(model_card(manifest, run), "utf-8")
        (aside / SUMS_FILE).write_text(sums(aside), "utf-8")
    return Bundle.open(out)


def _remember_answers(target: Target, material: Material, golden: Path) -> None:
    """Golden answers of a lossy precision's own graph, which files made of that graph are held to."""
    if target.precision != "fp32" and target.format in _OF_THE_GRAPH:
        floor = TOLERANCES.golden()["fp32"]
        add_own_answers(golden, material.graph(target.precision), target.precision, floor)


def size_of(path: Path) -> int:
    """Bytes of a model file, or of all files in it where the format is a folder."""
    return (
        sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
    )


def _remove(path: Path) -> None:
    """A model file and what was written beside it: its name and more."""
    for each in path.parent.glob(f"{path.name}*"):
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


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


@dataclass(frozen=True)
class Checked:
    """How a file was checked.

    Attributes:
        by: the backend that ran it, or "specification" where none can on this machine.
        worst: the largest difference in logits; None where it was not run.
        why: it was not run.
    """

    by: str
    worst: float | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.worst is None:
            return f"specification checked, NOT run: {self.why}"
        return f"self-test passed, logits within {self.worst:.1e}"


def checked(target: Target, path: Path, manifest: Manifest, golden: Path) -> Checked:
    """Open and run a file on the golden inputs, on the first backend that runs its format.

    Where that backend cannot be had on this machine, what the file says of itself is checked instead, if its format
    can tell.

    Raises:
        ExportError: it does not run here, or its answers differ from PyTorch's.
    """
    values = read_golden(golden)
    (backend, *_) = backends_for(target.format)
    if (why := backend.absent()) and formats.examined(target, path, manifest):
        return Checked("specification", why=why)
    own = (manifest.preprocessing.size, manifest.preprocessing.size, 3)
    used = [row for row, image in enumerate(values.images) if backend.resizes or image.shape == own]
    try:
        with backend.opened(path, manifest) as run:
            answers = run([values.images[row] for row in used])
    except PocketDxError as problem:
        raise ExportError(f"{path.name}: written, but does not run here ({problem})") from problem
    compared = [("PyTorch's", values.outputs, values.tolerances.get(manifest.precision))]
    if target.format in _OF_THE_GRAPH and manifest.precision in values.own:
        compared.append(("its graph's", *values.own[manifest.precision]))
    worst = None
    for whose, outputs, tolerances in compared:
        if tolerances is None:  # int8 on drawn pictures; see `tolerances.ToleranceTable.golden`
            continue
        expected = {name: array[np.array(used)] for name, array in outputs.items() if name in answers}
        checks = check_outputs(expected, answers, tolerances, (golden.name, path.name))
        if not checks or not all(checks):
            differences = ", ".join(f"{each.output} {each.max_difference:.2g}" for each in checks)
            raise ExportError(f"{path.name}: answers differ from {whose} on the golden inputs ({differences})")
        worst = next(each.max_difference for each in checks if each.output == "logits")
    if worst is None:
        raise ExportError(f"{path.name}: no golden answers for {target.name} to check it with")
    return Checked(backend.name, worst)


def sums(folder: Path) -> str:
    """`sha256sum`'s listing of all files in `folder` but the listing itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS_FILE)
    return "".join(f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


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
