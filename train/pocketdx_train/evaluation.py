"""A network, or an exported file, on one labelled set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketdx_runtime.model import Model
from pocketdx_train.cache import Decoded, Progress, batches, decode_once, default_cache_folder
from pocketdx_train.errors import DataError, TrainError
from pocketdx_train.metrics import Evaluation, evaluate
from pocketdx_train.records import Source
from pocketdx_train.run import Run
from pocketdx_train.sources import open_source

if TYPE_CHECKING:
    import torch

    from pocketdx_train.architectures import Network

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

_BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image of a set.

    Attributes:
        names: of the images.
        truth: int64 [N], class indices.
        logits: float32 [N, C].
        probabilities: float32 [N, C], calibrated.
        evaluation: the figures.
    """

    names: tuple[str, ...]
    truth: NDArray[np.int64]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    evaluation: Evaluation


def network_logits(network: Network, device: torch.device | str = "cpu") -> Predictor:
    """uint8 [N, S, S, 3] to logits, float32 [N, C], by a network in evaluation mode on `device`."""
    import torch

    network = network.to(device).eval()

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            tensor = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            logits: NDArray[np.float32] = network(tensor).float().cpu().numpy()
        return logits

    return predict


def model_logits(model: Model) -> Predictor:
    """uint8 [N, S, S, 3] to logits, float32 [N, C], by an exported file."""

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model.run(pixels, ["logits"])["logits"]
        return logits

    return predict


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """softmax(logits / temperature) along the last axis."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def predict_set(
    predict: Predictor,
    data: Decoded,
    positions: NDArray[np.int64],
    labels: Sequence[str],
    *,
    temperature: float,
) -> Predictions:
    """Run `predict` over the images at `positions`, and evaluate its answers.

    Raises:
        DataError: the set is empty.
        TrainError: the model's answers are no numbers.
    """
    if not len(positions):
        raise DataError("no readable image to evaluate on")
    logits = np.concatenate([predict(pixels) for pixels in batches(data.pixels, positions, _BATCH)])
    if not np.isfinite(logits).all():
        raise TrainError("the model's answers are not finite numbers: it is damaged, or its training diverged")
    records = [data.records[i] for i in positions]
    truth = np.array([labels.index(record.label) for record in records], dtype=np.int64)
    probabilities = softmax(logits, temperature)
    patients = [record.patient for record in records]
    groups = patients if any(patient is not None for patient in patients) else None
    return Predictions(
        names=tuple(record.name for record in records),
        truth=truth,
        logits=logits,
        probabilities=probabilities,
        evaluation=evaluate(truth, probabilities, labels, groups=groups),
    )


@dataclass(frozen=True)
class ChosenSet:
    """The images that something is evaluated or compared on.

    Attributes:
        data: decoded at the model's input size.
        positions: int64 [M], those chosen.
        source: where they come from.
        split: "train", "val", "test" or "all".
    """

    data: Decoded
    positions: NDArray[np.int64]
    source: Source
    split: str


def choose_set(
    path: Path,
    labels: Sequence[str],
    size: int,
    *,
    split: str | None,
    run: Run | None,
    trained_on: str = "",
    patient_regex: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ChosenSet:
    """Decode a data set and choose what to evaluate on.

    A data set with splits of its own is evaluated on its test split; one without on what the run kept for testing, if
    it is the run's own data; any other, whole. Never, unless `split` says so, on what the model was trained on.

    Args:
        path: the data set.
        labels: the model's classes.
        size: of the model's input.
        split: "train", "val", "test", "all", or None to choose as above.
        run: whose recorded splits to use where the data is its own.
        trained_on: where there is no run, the fingerprint of the data that the model was trained on.
        patient_regex: see `sources.open_source`; the run's own by default.
        cache: folder of the decoded images.
        progress: called with (done, all) while pictures are decoded.

    Raises:
        DataError: the data cannot be read, has classes that the model lacks, or lacks the split.
        CheckpointError: the run's record of its splits is damaged.
    """
    if patient_regex is None and run is not None:
        patient_regex = run.record.settings.patient_regex
    source = open_source(path, patient_regex=patient_regex)
    unknown = {record.label for record in source.records} - set(labels)
    if unknown:
        raise DataError(
            f"{path}: has classes that the model does not know: {', '.join(sorted(unknown))}; "
            f"it knows {', '.join(labels)}"
        )
    data = decode_once(source, size, cache or default_cache_folder(), progress=progress)
    splits = _splits_of(path, data, run, trained_on, whole=split == "all")
    chosen = split or ("test" if "test" in splits else "all")
    positions = [
        position for position, found in enumerate(splits) if position not in data.problems and chosen in {"all", found}
    ]
    if not positions:
        raise DataError(f"{path}: no readable image in the split {chosen!r}; choose another with --split")
    return ChosenSet(data, np.array(positions, dtype=np.int64), source, chosen)


def _splits_of(path: Path, data: Decoded, run: Run | None, trained_on: str, *, whole: bool) -> list[str]:
    """The split of each record as the run used it, else by the data itself; "" where neither says."""
    given = [record.split or "" for record in data.records]
    if whole:
        return given
    recorded = run.splits() if run else {}
    same = data.fingerprint() == (run.record.data_fingerprint if run else trained_on)
    if run and same:
        return [recorded.get(record.name, "") for record in data.records]
    if any(given):
        return given
    if same:
        raise DataError(
            f"{path}: the model was trained on some of these images; evaluate its run, which knows the test split, "
            "or say --split all"
        )
    if run and any(record.name in recorded for record in data.records):
        raise DataError(
            f"{path}: some images have the names of those that {run.folder} was trained on, but the data is not the "
            "same; undo the change, or say --split all if none of them was trained on"
        )
    return given
