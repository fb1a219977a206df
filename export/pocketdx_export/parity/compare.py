"""Compare one exported file with the full PyTorch model, from the image files on.

The reference is the network in PyTorch, fed by the training-time preprocessing (full decode, Pillow's resize). The
exported file gets the same image files by two roads: *runtime*, image bytes through PocketDx's runtime, which decodes
large JPEGs at a reduced scale and hands the graph pictures of its own size; and *graph*, full-size pixels resized by
the graph itself, as a phone app does it.

Three questions, each answered apart, so that a red row says where the fault is: does the network get the right
pixels; does it compute the right numbers from the very same pixels; are the decisions the same end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketdx_export.errors import ParityError
from pocketdx_export.parity.probe import InputProbe
from pocketdx_export.parity.report import Check, Report
from pocketdx_export.parity.tolerances import TOLERANCES, Tolerances, logit_scale
from pocketdx_runtime import image
from pocketdx_runtime.machine import describe_machine
from pocketdx_runtime.manifest import Manifest
from pocketdx_runtime.model import Model
from pocketdx_train.architectures import ARCHITECTURES, Network
from pocketdx_train.cache import training_pixels
from pocketdx_train.evaluation import ChosenSet, softmax
from pocketdx_train.metrics import evaluate
from pocketdx_train.run import Run
from pocketdx_train.sources import Picture

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]

_OUTPUTS = ("logits", "probabilities", "embedding")
_BATCH = 32
# Pictures that are resampled to other sizes, so that the graph's resize is tested even where every file has its size.
_RESAMPLED = 8
# Grey levels; below it two pictures are the same, but for the rounding of normalising and back.
_SAME = 0.01
_SIZES = ((1.9, 1.3), (0.7, 1.1), (3.3, 3.3), (1.0, 2.0))


@dataclass
class _Road:
    """Figures of one road, gathered picture by picture."""

    name: str
    logits: list[Floats] = field(default_factory=list)
    probabilities: list[Floats] = field(default_factory=list)
    pixel_max: dict[str, float] = field(default_factory=dict)
    pixel_mean: dict[str, float] = field(default_factory=dict)
    scaled: set[str] = field(default_factory=set)
    logits_error: dict[str, float] = field(default_factory=dict)
    logits_mean: list[float] = field(default_factory=list)
    probabilities_error: dict[str, float] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    length_error: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sides:
    """Both sides of the comparison."""

    network: Network
    temperature: float
    model: Model
    probe: InputProbe

    def measure(self, road: _Road, names: list[str], given: list[Pixels], reference: list[Pixels]) -> None:
        """Feed `given` to the file; compare with what the network should have got and computed.

        Args:
            road: changed in place.
            names: of the pictures.
            given: uint8 [h, w, 3], what the file gets; all of one shape.
            reference: uint8 [S, S, 3], the training-time pixels of the same pictures.
        """
        batch = np.stack(given)
        outputs = self.model.run(batch, _OUTPUTS)
        tensors = torch.from_numpy(self.probe(batch))
        with torch.inference_mode():
            features = self.network.features(tensors)
            logits = self.network.classify(features)
            expected = torch.from_numpy(np.stack(reference)).permute(0, 3, 1, 2)
            preprocessing = self.network.preprocessing
            levels = (tensors * self.network.std + self.network.mean) / preprocessing.scale
            apart = (levels - expected).abs().flatten(1)
            embedding = torch.nn.functional.normalize(features.double(), dim=1).numpy()
        probabilities = softmax(logits.numpy(), self.temperature)
        road.logits.append(outputs["logits"])
        road.probabilities.append(outputs["probabilities"])
        for row, name in enumerate(names):
            road.pixel_max[name] = float(apart[row].max())
            road.pixel_mean[name] = float(apart[row].mean())
            errors = np.abs(outputs["logits"][row] - logits[row].numpy()) / logit_scale(logits[row].numpy())
            road.logits_error[name] = float(errors.max())
            road.logits_mean.append(float(errors.mean()))
            road.probabilities_error[name] = float(np.abs(outputs["probabilities"][row] - probabilities[row]).max())
            ours = outputs["embedding"][row].astype(np.float64)
            length = float(np.linalg.norm(ours))
            road.length_error[name] = abs(length - 1.0)
            road.cosine[name] = float(ours @ embedding[row]) / length if length > 0 else float("nan")


def compare_file(
    path: Path,
    run: Run,
    chosen: ChosenSet,
    *,
    tolerances: Tolerances | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Compare the file at `path` with `run` on labelled images.

    Args:
        path: an exported `.onnx` file.
        run: the full model.
        chosen: the images, as `train.evaluation.choose_set` gives them for the run's classes and size.
        tolerances: the table's for the file's precision without them.
        limit: compare only so many images, drawn with `seed`.
        seed: of that draw.
        progress: called with (done, all).

    Returns:
        The report; its truth value is the verdict.

    Raises:
        ParityError: the two cannot be compared at all.
        ModelError, ManifestError: the file cannot be opened.
    """
    model = Model(path)
    manifest = model.manifest
    if tolerances is None:
        if manifest.precision not in TOLERANCES.by_precision:
            raise ParityError(f"{path}: no tolerances are known for the precision {manifest.precision}")
        tolerances = TOLERANCES.by_precision[manifest.precision]
    missing = [name for name in _OUTPUTS if name not in manifest.outputs]
    if missing:
        raise ParityError(f"{path}: has no output {', '.join(missing)}; export it again with `pocketdx export`")
    embedding_size = ARCHITECTURES[run.record.settings.architecture].embedding_size
    for what, ours, theirs in (
        ("classes", len(manifest.labels), len(run.record.labels)),
        ("pixels a side", manifest.preprocessing.size, run.record.preprocessing.size),
        ("values in the embedding", manifest.embedding_size, embedding_size),
    ):
        if ours != theirs:
            raise ParityError(
                f"{path}: has {ours} {what}, {run.folder} has {theirs}; "
                "name the run that it was exported from with --against"
            )
    positions = _drawn(chosen.positions, limit, seed)
    network = run.network()
    sides = _Sides(network, run.record.temperature, model, InputProbe(path, threads=model.threads))
    runtime, graph = _Road("runtime"), _Road("graph")
    size = run.record.preprocessing.size
    reference = _by_road(sides, runtime, graph, chosen, positions, size, progress)
    _resampled(sides, graph, chosen, positions, size)

    truth = np.array([run.record.labels.index(chosen.data.records[i].label) for i in positions])
    checks = [
        *_manifest_checks(manifest, run),
        *_pixel_checks(runtime, tolerances),
        *_pixel_checks(graph, tolerances),
        *_number_checks(runtime, tolerances),
        *_number_checks(graph, tolerances),
        *_decision_checks(runtime, reference, truth, run, tolerances),
    ]
    return Report(
        file=path.name,
        reference=f"the full PyTorch model of {run.folder.name}",
        data=f"{chosen.split} of {Path(chosen.source.name).name}" if chosen.split != "all" else chosen.source.name,
        images=len(positions),
        checks=tuple(checks),
        notes=_notes(runtime, graph, chosen),
        facts={
            "file_sha256": model.digest,
            "weights_sha256": run.record.weights_digest,
            "data_fingerprint": chosen.data.fingerprint(),
            "seed": seed,
            "software": {**manifest.software, "torch (here)": torch.__version__},
            "machine": describe_machine(),
            "pictures": [chosen.data.records[i].name for i in positions],
        },
    )


def _drawn(positions: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    if limit is None or limit >= len(positions):
        return positions
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.sort(rng.choice(positions, limit, replace=False))


def _by_road(
    sides: _Sides,
    runtime: _Road,
    graph: _Road,
    chosen: ChosenSet,
    positions: NDArray[np.int64],
    size: int,
    progress: Progress | None,
) -> Floats:
    """Both roads over all pictures; returns the reference logits, float32 [N, C], end to end."""
    reference: list[Floats] = []
    done = 0
    for names, pictures in _batched(chosen, positions):
        full = [image.decode(picture, name=name) for picture, name in zip(pictures, names, strict=True)]
        expected = [training_pixels(pixels, size) for pixels in full]
        with torch.inference_mode():
            reference.append(sides.network(torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2)).numpy())
        given = [image.load(picture, size, name=name) for picture, name in zip(pictures, names, strict=True)]
        sides.measure(runtime, names, given, expected)
        for name, picture, pixels, wanted in zip(names, pictures, full, expected, strict=True):
            if _is_jpeg(picture) and image.may_scale(pixels.shape[1], pixels.shape[0], size):
                runtime.scaled.add(name)
            if pixels.shape != wanted.shape:  # of the network's own size, both roads are one
                sides.measure(graph, [name], [pixels], [wanted])
        done += len(names)
        if progress:
            progress(done, len(positions))
    return np.concatenate(reference)


def _is_jpeg(picture: Picture) -> bool:
    if not isinstance(picture, Path):
        return False
    with picture.open("rb") as file:
        return file.read(2) == b"\xff\xd8"


def _resampled(sides: _Sides, graph: _Road, chosen: ChosenSet, positions: NDArray[np.int64], size: int) -> None:
    """A few of the pictures at other sizes, through the graph's own resize."""
    for names, pictures in _batched(chosen, positions[:_RESAMPLED]):
        for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
            tall, wide = _SIZES[number % len(_SIZES)]
            height, width = round(tall * size) + 1, round(wide * size) + 2
            original = Image.fromarray(image.decode(picture, name=name))
            pixels = np.asarray(original.resize((width, height), Image.Resampling.LANCZOS))
            shown = f"{name} at {width}x{height}"
            sides.measure(graph, [shown], [pixels], [training_pixels(pixels, size)])


def _batched(chosen: ChosenSet, positions: NDArray[np.int64]) -> Iterator[tuple[list[str], list[Picture]]]:
    wanted = set(positions.tolist())
    pairs = (
        (record.name, picture)
        for number, (record, picture) in enumerate(zip(chosen.data.records, chosen.source.pictures(), strict=True))
        if number in wanted
    )
    while batch := list(islice(pairs, _BATCH)):
        yield [name for name, _ in batch], [picture for _, picture in batch]


def _manifest_checks(manifest: Manifest, run: Run) -> list[Check]:
    """Does the file say of itself what the run says? Values count the differences."""
    record = run.record
    same = {
        "labels": manifest.labels == record.labels,
        "preprocessing": manifest.preprocessing == record.preprocessing,
        "temperature": manifest.temperature == record.temperature,
        "thresholds": manifest.thresholds == record.thresholds,
        "weights digest": manifest.weights_digest == record.weights_digest,
    }
    wrong = ", ".join(name for name, equal in same.items() if not equal)
    return [Check("manifest", "", "differences", float(sum(not e for e in same.values())), 0.0, worst=wrong)]


def _pixel_checks(road: _Road, limits: Tolerances) -> list[Check]:
    checks = []
    for title, chosen, most, mean in (
        ("", [name for name in road.pixel_max if name not in road.scaled], limits.pixel_max, limits.pixel_mean),
        (", scaled decode", sorted(road.scaled), limits.scaled_max, limits.scaled_mean),
    ):
        if chosen:
            checks.append(_largest("pixels", road, f"grey levels{title}, max", road.pixel_max, most, chosen))
            checks.append(_largest("pixels", road, f"grey levels{title}, mean", road.pixel_mean, mean, chosen))
    return checks


def _number_checks(road: _Road, limits: Tolerances) -> list[Check]:
    if not road.cosine:
        return []
    worst = min(road.cosine, key=lambda name: _lowest_if_nan(road.cosine[name]))
    mean = float(np.mean(road.logits_mean))
    return [
        _largest("numbers", road, "logits, max", road.logits_error, limits.logits_max),
        Check("numbers", road.name, "logits, mean", mean, limits.logits_mean),
        _largest("numbers", road, "probabilities, max", road.probabilities_error, limits.probabilities_max),
        Check("numbers", road.name, "embedding cosine", road.cosine[worst], limits.cosine_min, True, worst),
        _largest("numbers", road, "embedding length, off 1", road.length_error, limits.length_max),
    ]


def _decision_checks(
    road: _Road, reference: Floats, truth: NDArray[np.int64], run: Run, limits: Tolerances
) -> list[Check]:
    ours = np.concatenate(road.logits)
    labels = run.record.labels
    agreement = float((ours.argmax(1) == reference.argmax(1)).mean())
    names = list(road.pixel_max)
    flipped = [names[i] for i in np.flatnonzero(ours.argmax(1) != reference.argmax(1))]
    end_to_end = float(np.abs(ours - reference).max()) / logit_scale(reference)
    checks = [
        Check("decisions", road.name, "top-1 agreement", agreement, limits.agreement_min, True, ", ".join(flipped[:3])),
    ]
    if max(road.pixel_max.values()) < _SAME:  # then the whole way must be as close as the network alone
        checks.append(Check("decisions", road.name, "logits end to end, max", end_to_end, limits.logits_max))
    apart = abs(_auc(truth, ours, labels) - _auc(truth, reference, labels))
    if len(np.unique(truth)) > 1:
        checks.append(Check("decisions", road.name, "AUC difference", apart, limits.auc_max))
    return checks


def _auc(truth: NDArray[np.int64], logits: Floats, labels: Sequence[str]) -> float:
    """Macro AUC; NaN where the logits are not all numbers."""
    if not np.isfinite(logits).all():
        return float("nan")
    found = evaluate(truth, softmax(logits, 1.0), labels, resamples=1).auc
    return float("nan") if found is None else found.value


def _notes(runtime: _Road, graph: _Road, chosen: ChosenSet) -> tuple[str, ...]:
    notes = []
    if runtime.scaled:
        notes.append(f"{len(runtime.scaled)} large JPEGs were decoded at a reduced scale by the runtime")
    notes.append(f"{len(graph.pixel_max)} pictures were of another size and resized by the graph")
    if chosen.data.problems:
        notes.append(f"{len(chosen.data.problems)} unreadable images were left out")
    if chosen.split == "train":
        notes.append("these images were trained on: decisions on them say little")
    return tuple(notes)


def _largest(
    level: str, road: _Road, name: str, values: dict[str, float], limit: float, chosen: list[str] | None = None
) -> Check:
    worst = max(chosen or values, key=lambda each: np.inf if np.isnan(values[each]) else values[each])
    return Check(level, road.name, name, values[worst], limit, worst=worst)


def _lowest_if_nan(value: float) -> float:
    return -np.inf if np.isnan(value) else value
