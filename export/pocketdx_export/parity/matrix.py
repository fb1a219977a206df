"""The matrix: every file on every backend, compared with the full PyTorch model, from the image files on.

The reference is the network in PyTorch, fed by the training-time preprocessing (full decode, Pillow's resize). The
exported file gets the same image files by two roads: *runtime*, image bytes through PocketDx's runtime, which decodes
large JPEGs at a reduced scale and hands the graph pictures of its own size; and *graph*, full-size pixels resized by
the graph itself, as a phone app does it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pocketdx_export.backends import BACKENDS, Backend, BackendError, Runner, UnsupportedError
from pocketdx_export.errors import ParityError
from pocketdx_export.parity.files import ModelFile, check_comparable, digest_of
from pocketdx_export.parity.levels import Road, worst_of
from pocketdx_export.parity.levels.clinic import Clinic, clinic_checks, clinical_figures
from pocketdx_export.parity.levels.decisions import Side, decision_checks, flips, side_of
from pocketdx_export.parity.levels.manifest import manifest_checks
from pocketdx_export.parity.levels.numbers import logit_errors, number_checks
from pocketdx_export.parity.levels.pixels import pixel_checks
from pocketdx_export.parity.pictures import Feed, Pictures, Progress, decode_pictures
from pocketdx_export.parity.plan import Planned, plan
from pocketdx_export.parity.probe import NETWORK_INPUT, write_probe
from pocketdx_export.parity.reference import Reference
from pocketdx_export.parity.report import Cell, Check, Jump, Report
from pocketdx_export.parity.together import together
from pocketdx_export.parity.tolerances import TOLERANCES, Tolerances, ToleranceTable
from pocketdx_export.parity.trace import find_jump
from pocketdx_runtime.machine import describe_machine
from pocketdx_runtime.manifest import Manifest
from pocketdx_train.evaluation import ChosenSet
from pocketdx_train.run import Run

_BATCH = 32
_PLAIN = "onnxruntime-plain"
_DEFAULT = "onnxruntime"
# Pictures for the graph's own resize on a slow backend.
_SLOW_GRAPH_MOST = 8
_SATURATION = "saturation_max"
# Precisions that compute in integers.
_INTEGER = ("int8",)

Outputs = dict[str, NDArray[np.float32]]


@dataclass
class Comparison:
    """A run, its pictures, and the cells to compare; a cell is computed when it is asked for.

    Attributes:
        run: the full model.
        chosen: labelled pictures, as `train.evaluation.choose_set` gives them for the run's classes and size.
        files: to compare.
        table: of tolerances.
        clinic: how the clinical level judges.
        backends: names of those to use; none given stands for all that run here.
        limit: compare only so many pictures, drawn with `seed`.
        seed: of that draw and of the order of pictures for slow backends.
        progress: called with (done, all) while pictures are decoded.
    """

    run: Run
    chosen: ChosenSet
    files: Sequence[ModelFile]
    table: ToleranceTable = TOLERANCES
    clinic: Clinic = field(default_factory=Clinic)
    backends: Sequence[str] = ()
    limit: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for file in self.files:
            check_comparable(file, self.run)
        self._slow_tensors: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = {}
        # Two threads on one backend would ask it twice for what its cells have in common.
        self._locks = {backend.name: threading.RLock() for backend in BACKENDS}
        self._outputs: dict[tuple[Path, str], dict[str, Outputs]] = {}

    @cached_property
    def planned(self) -> tuple[Planned, ...]:
        """What will be compared, and what cannot be. Raises ParityError for backends that do not exist."""
        return plan(self.files, self.backends)

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures, decoded once."""
        size = self.run.record.preprocessing.size
        return decode_pictures(self.chosen, size, limit=self.limit, seed=self.seed, progress=self.progress)

    def prepare(self) -> None:
        """Decode the pictures and ask the full model, so that cells may be computed by several threads."""
        _ = self.planned, self.pictures, self.reference.end_to_end, self.reference.truth

    @cached_property
    def reference(self) -> Reference:
        """The full model's side."""
        return Reference(self.run, self.pictures)

    def cell(self, planned: Planned) -> Cell:
        """Compare one file on one backend; a device that fails is a failed cell."""
        file, backend = planned.file, planned.backend
        cell = Cell(file.path.name, file.target, file.manifest.precision, planned.name, asked=planned.asked)
        if planned.not_run:
            return replace(cell, not_run=planned.not_run)
        assert backend is not None
        limits = self.table.of(file.manifest.precision, str(file.path))
        started = time.monotonic()
        try:
            roads, notes = self._roads(file, backend)
        except UnsupportedError as problem:
            return replace(cell, not_run=str(problem), facts=file.facts())
        except BackendError as problem:
            return replace(cell, error=str(problem), facts=file.facts())
        compared = self._judged(cell, file, limits, roads, self._saturation(file, backend, roads, limits))
        jump = self._jump(compared, file, roads)
        facts = {**file.facts(), "seconds": round(time.monotonic() - started, 2), "rows": self._rows(backend).tolist()}
        return replace(
            compared,
            jump=jump,
            notes=(*notes, *self._notes(roads)),
            facts=facts,
        )

    def report(self, cells: Sequence[Cell]) -> Report:
        """The report of cells that were compared."""
        chosen, pictures = self.chosen, self.pictures
        name = Path(chosen.source.name).name
        machine = describe_machine()
        return Report(
            cells=tuple(cells),
            reference=f"the full PyTorch model of {self.run.folder.name}",
            data=f"{chosen.split} of {name}" if chosen.split != "all" else chosen.source.name,
            pictures=pictures.names,
            facts={
                "weights_sha256": self.run.record.weights_digest,
                "data_fingerprint": chosen.data.fingerprint(),
                "seed": self.seed,
                "limit": self.limit,
                "margin": self.clinic.margin,
                "require_noninferiority": self.clinic.require,
                "tolerances": dict(self.table.by_precision),
                "labels": list(self.run.record.labels),
                "software": {"torch": torch.__version__, **machine.software},
                "machine": machine,
            },
        )

    def _rows(self, backend: Backend) -> NDArray[np.int64]:
        return self.pictures.rows(backend.most)

    def _roads(self, file: ModelFile, backend: Backend) -> tuple[list[Road], tuple[str, ...]]:
        """Run the file, and its preprocessing alone, on the backend. Raises BackendError."""
        rows = self._rows(backend)
        feeds = {"runtime": self.pictures.runtime_road(rows)}
        if backend.resizes and file.format == "onnx":  # of other formats it cannot be told what the resize made
            most = None if backend.most is None else min(backend.most, _SLOW_GRAPH_MOST)
            feeds["graph"] = self.pictures.graph_road(rows, most)
        outputs = self._run(file, backend, feeds)
        tensors, notes = self._tensors(file, backend, feeds)
        roads = [self._road(name, each, outputs[name], tensors[name]) for name, each in feeds.items()]
        return roads, notes

    def _run(self, file: ModelFile, backend: Backend, feeds: dict[str, list[Feed]]) -> dict[str, Outputs]:
        """The file's outputs by road; once for each backend."""
        key = (file.path, backend.name)
        if key not in self._outputs:
            with backend.opened(file.path, file.manifest) as run:
                self._outputs[key] = {name: _ran(run, each) for name, each in feeds.items()}
        return self._outputs[key]

    def _tensors(
        self, file: ModelFile, backend: Backend, feeds: dict[str, list[Feed]]
    ) -> tuple[dict[str, NDArray[np.float32]], tuple[str, ...]]:
        """What the network inside the file gets, float32 [N, 3, S, S] by road."""
        if file.format != "onnx":
            fed = {name: self.reference.normalised(np.stack([f.pixels for f in each])) for name, each in feeds.items()}
            return fed, ("pixels: what is fed; this format does not show the tensor inside",)
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.onnx"
            try:
                manifest = write_probe(file.path, file.manifest, probe)
            except ParityError as problem:
                raise BackendError(str(problem)) from problem
            key = (backend.name, digest_of(probe))
            with self._locks[backend.name]:
                if key in self._slow_tensors:  # the files of a bundle have their preprocessing in common
                    return self._slow_tensors[key], ()
                notes: tuple[str, ...] = ()
                try:
                    tensors = _probed(backend, probe, manifest, feeds)
                except BackendError as problem:  # a device that runs whole models only
                    if backend.module == BACKENDS[0].module:
                        raise
                    notes = (f"pixels: the file's preprocessing was run by onnxruntime here, because {problem}",)
                    tensors = _probed(BACKENDS[0], probe, manifest, feeds)
                if backend.most is not None:
                    self._slow_tensors[key] = tensors
        return tensors, notes

    def _road(
        self, name: str, feeds: list[Feed], outputs: dict[str, NDArray[np.float32]], tensors: NDArray[np.float32]
    ) -> Road:
        most, mean = np.empty(len(feeds)), np.empty(len(feeds))
        for start in range(0, len(feeds), _BATCH):
            expected = np.stack([feed.expected for feed in feeds[start : start + _BATCH]])
            shown = self.reference.grey_levels(tensors[start : start + _BATCH])
            apart = np.abs(shown - expected).reshape(len(expected), -1)
            most[start : start + _BATCH], mean[start : start + _BATCH] = apart.max(1), apart.mean(1)
        reduced = np.array([name == "runtime" and feed.row in self.pictures.scaled for feed in feeds], np.bool_)
        return Road(name, feeds, reduced, most, mean, outputs, self.reference.of_tensors(tensors))

    def _judged(self, cell: Cell, file: ModelFile, limits: Tolerances, roads: list[Road], more: list[Check]) -> Cell:
        road = roads[0]
        labels, record = self.run.record.labels, self.run.record
        rows = np.array([feed.row for feed in road.feeds])
        ours = side_of(road.outputs, file.manifest.temperature, file.manifest.thresholds, file.columns(labels))
        reference = self._reference_side(rows)
        truth = self.reference.truth
        patients = [self.pictures.patients[row] for row in rows]
        figures = clinical_figures(truth[rows], reference, ours, record.labels, patients, self.clinic)
        whole = self.reference.end_to_end
        end_to_end = replace(
            whole, logits=whole.logits[rows], probabilities=whole.probabilities[rows], embedding=whole.embedding[rows]
        )
        lossy = file.manifest.precision != "fp32"
        checks: list[Check] = [
            *manifest_checks(file.manifest, self.run),
            *(check for each in roads for check in pixel_checks(each, limits)),
            *(check for each in roads for check in number_checks(each, limits)),
            *more,
            *decision_checks(road, ours, reference, end_to_end, labels, limits, lossy=lossy),
            *clinic_checks(figures, ours, limits, self.clinic, whole=len(rows) == len(self.chosen.positions)),
        ]
        return replace(
            cell,
            images=len(rows),
            checks=tuple(checks),
            clinic=figures,
            flips=flips(road, ours, reference, truth, labels),
        )

    def _reference_side(self, rows: NDArray[np.int64]) -> Side:
        whole, record = self.reference.end_to_end, self.run.record
        outputs = {"logits": whole.logits[rows], "probabilities": whole.probabilities[rows]}
        return side_of(outputs, record.temperature, record.thresholds, range(len(record.labels)))

    def _jump(self, cell: Cell, file: ModelFile, roads: list[Road]) -> Jump | None:
        """Trace the worst picture of the first road whose logits fail."""
        if file.format != "onnx":
            return None
        failed = [check for check in cell.failed if check.level == "numbers"]
        for check in failed:
            if check.limit != _SATURATION:
                road = next(each for each in roads if each.name == check.road)
                feed = next((each for each in road.feeds if each.name == check.worst), road.feeds[0])
                return find_jump(file.path, file.manifest.precision, self.run, feed.pixels, feed.name)
        if failed:  # computed in float, all is well
            return Jump("", "", "", 0.0, 0.0, None, None, failed[0].worst, "the float simulation")
        return None

    def _saturation(self, file: ModelFile, backend: Backend, roads: list[Road], limits: Tolerances) -> list[Check]:
        """How far the integer kernels are from the same graph computed in float; its rounding is theirs, too."""
        if backend.name != _DEFAULT or file.manifest.precision not in _INTEGER or "logits" not in roads[0].outputs:
            return []
        plain = next(each for each in BACKENDS if each.name == _PLAIN)
        simulated = self._run(file, plain, {road.name: road.feeds for road in roads})
        checks = []
        for road in roads:
            gap = logit_errors(road.outputs["logits"], simulated[road.name]["logits"]).max(1)
            row = worst_of(gap)
            name, worst = "logits, off the float simulation", road.feeds[row].name
            most = getattr(limits, _SATURATION)
            checks.append(Check("numbers", road.name, name, float(gap[row]), most, worst=worst, limit=_SATURATION))
        return checks

    def _notes(self, roads: list[Road]) -> tuple[str, ...]:
        notes = []
        if reduced := int(roads[0].scaled.sum()):
            notes.append(f"{reduced} large JPEGs were decoded at a reduced scale by the runtime")
        if len(roads) > 1:
            notes.append(
                f"{len(roads[1].feeds)} pictures of another size were resized by the graph; "
                f"{self.pictures.others} of {len(self.pictures)} files are of another size"
            )
        if self.chosen.data.problems:
            notes.append(f"{len(self.chosen.data.problems)} unreadable images were left out")
        if self.chosen.split == "train":
            notes.append("these images were trained on: decisions on them say little")
        return tuple(notes)


def _probed(
    backend: Backend, probe: Path, manifest: Manifest, feeds: dict[str, list[Feed]]
) -> dict[str, NDArray[np.float32]]:
    """The network's input by road."""
    with backend.opened(probe, manifest) as run:
        return {name: _ran(run, each)[NETWORK_INPUT] for name, each in feeds.items()}


def _ran(run: Runner, feeds: Sequence[Feed]) -> dict[str, NDArray[np.float32]]:
    """All outputs; pictures of one shape go together, and come back in their own order."""
    outputs = run([feed.pixels for feed in feeds])
    for name, values in outputs.items():
        if len(values) != len(feeds):
            raise BackendError(f"{len(values)} answers in {name} to {len(feeds)} pictures")
    return outputs


def compare_file(
    path: Path,
    run: Run,
    chosen: ChosenSet,
    *,
    tolerances: Tolerances | None = None,
    limit: int | None = None,
    seed: int = 0,
    backends: Sequence[str] = (_DEFAULT,),
    clinic: Clinic | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare the file at `path` with `run` on labelled images.

    Args:
        path: an exported file.
        run: the full model.
        chosen: the images, as `train.evaluation.choose_set` gives them for the run's classes and size.
        tolerances: the table's for the file's precision without them.
        limit: compare only so many images, drawn with `seed`.
        seed: of that draw.
        backends: by name; empty for all that are available.
        clinic: how the clinical level judges.
        progress: called with (done, all).

    Returns:
        The report; its truth value is the verdict.

    Raises:
        ParityError: the two cannot be compared at all.
        ModelError, ManifestError: the file cannot be opened.
    """
    file = ModelFile.at(path)
    table = TOLERANCES if tolerances is None else ToleranceTable({file.manifest.precision: tolerances})
    return compare_files(Comparison(run, chosen, (file,), table, clinic or Clinic(), backends, limit, seed, progress))


def compare_files(comparison: Comparison) -> Report:
    """All cells of a comparison; devices, which are slow, beside the engines of this process (see `together`)."""
    comparison.prepare()

    def apart(planned: Planned) -> bool:
        return planned.backend is not None and not planned.not_run and planned.backend.most is not None

    return comparison.report(together(comparison.cell, comparison.planned, apart))
