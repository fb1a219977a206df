"""A run: the folder that training leaves behind, and from which a model is evaluated and exported.

`weights.safetensors` has torchvision's names, so that plain torchvision loads it too. `run.json` holds all else that
the model needs; `data.json` what was found out about the data, and the split of every image.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketdx_runtime.conform import conform, conform_fields, require, to_plain
from pocketdx_runtime.errors import PocketDxError
from pocketdx_runtime.files import write_atomically
from pocketdx_runtime.manifest import Interval, Preprocessing, Thresholds
from pocketdx_train.errors import CheckpointError
from pocketdx_train.settings import TrainSettings

if TYPE_CHECKING:
    from pocketdx_train.architectures import Network

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
WEIGHTS_FILE = "weights.safetensors"
DATA_FILE = "data.json"
HISTORY_FILE = "metrics.csv"


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says.

    Attributes:
        settings: how the network was trained.
        labels: class names in the order of the logits.
        preprocessing: what the network expects.
        temperature: divides the logits before the softmax; fitted on validation.
        thresholds: for the verdict.
        data_fingerprint: SHA-256 (hex) of the data; see `cache.Decoded.fingerprint`.
        weights_digest: SHA-256 (hex) of `weights.safetensors`.
        best_epoch: the epoch, from 1, whose weights were kept.
        metrics: on test, by name, with 95 % intervals.
        software: versions by package.
        created: ISO 8601, UTC.
        seconds: wall time of the training, evaluation included.
    """

    settings: TrainSettings
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    temperature: float
    thresholds: Thresholds
    data_fingerprint: str
    weights_digest: str
    best_epoch: int
    metrics: Mapping[str, Interval]
    software: Mapping[str, str]
    created: str
    seconds: float
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        conform_fields(self)
        require(len(set(self.labels)) == len(self.labels) >= 2, "labels", self.labels, "two or more distinct names")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a finite number above 0")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        record: what `run.json` says.
    """

    folder: Path
    record: RunRecord

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read and check a run.

        Raises:
            CheckpointError: the folder is no finished run, or one of its files is damaged.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            raise CheckpointError(_not_a_run(folder))
        try:
            raw = json.loads(path.read_text("utf-8"))
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise CheckpointError(f"{path}: written by a newer PocketDx; upgrade with pip install -U pocketdx")
            record: RunRecord = conform(raw, RunRecord, "")
        except CheckpointError:
            raise
        except (OSError, ValueError, RecursionError, PocketDxError) as problem:
            raise CheckpointError(f"{path}: damaged ({problem}); copy the run again or train again") from problem
        run = cls(folder, record)
        run._check_weights()
        return run

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.folder / WEIGHTS_FILE

    def network(self) -> Network:
        """The trained network, in evaluation mode, on the CPU.

        Raises:
            CheckpointError: the weights are damaged or of another architecture.
        """
        from pocketdx_train.architectures import Network, apply_weights, load_weights

        network = Network(self.record.settings.architecture, len(self.record.labels), self.record.preprocessing)
        apply_weights(network, load_weights(self.weights), str(self.weights))
        return network.eval()

    def splits(self) -> dict[str, str]:
        """The split of every image the run used, by the image's name.

        Raises:
            CheckpointError: `data.json` is missing or damaged.
        """
        path = self.folder / DATA_FILE
        try:
            splits = json.loads(path.read_text("utf-8"))["splits"]
            return {str(name): str(split) for name, split in splits.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CheckpointError(f"{path}: missing or damaged; copy the run again") from problem

    def _check_weights(self) -> None:
        if not self.weights.is_file():
            raise CheckpointError(f"{self.weights}: missing; copy the run again or train again")
        if digest(self.weights) != self.record.weights_digest:
            raise CheckpointError(
                f"{self.weights}: not the weights that {RUN_FILE} speaks of (SHA-256 differs); copy the run again"
            )


def unfinished_folder(folder: Path) -> Path:
    """Where a run lives until it is whole."""
    named = folder if folder.name not in {"", ".."} else folder.resolve()
    return Path(f"{named}.unfinished")


def write_json(path: Path, value: Any) -> None:
    """Write plain values and frozen dataclasses as indented JSON, whole or not at all; replaces what is there."""
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    # A file name that is not UTF-8 has surrogates, which backslashes turn into JSON's own escapes.
    write_atomically(path, f"{text}\n".encode("utf-8", "backslashreplace"), overwrite=True)


def _not_a_run(folder: Path) -> str:
    if unfinished_folder(folder).is_dir():
        return f"{folder}: not finished; go on with `pocketdx train ... --out {folder} --resume`"
    if not folder.exists():
        return f"{folder}: no such run; make one with `pocketdx train DATA --out {folder}`"
    models = sorted(folder.glob("*.onnx")) if folder.is_dir() else []
    if models:
        return f"{folder}: an exported bundle, not a run; name one of its files, such as {models[0]}"
    return f"{folder}: not a run; make one with `pocketdx train DATA --out RUN`"


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
