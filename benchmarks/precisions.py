"""What each precision costs and gains: size, decisions on test, and latency beside fp32.

For each RUN and its DATA: `pocketdx export` with every ONNX precision (int8 searched under its budget, on validation),
then every file on the run's test images, and all files on one thread in turns. The test images choose nothing.

    python benchmarks/precisions.py runs/chest-v3=chest-xray runs/chest-v2=chest-xray
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from measure import circumstances, interleaved, ratio, table
from numpy.typing import NDArray

from pocketdx_export.bundle import Bundle, export_run
from pocketdx_export.targets import TARGETS
from pocketdx_runtime.model import Model
from pocketdx_train.evaluation import ChosenSet, Predictions, choose_set, model_logits, predict_set
from pocketdx_train.run import Run


@dataclass(frozen=True)
class Limits:
    """What the project set itself; latency by architecture, None where float32 computes.

    Attributes:
        size: largest, by fp32's.
        agreement: smallest share of test images with fp32's top-1.
        auc: largest difference of the mean AUC.
        speed: smallest ratio of fp32's latency to the file's, by architecture.
    """

    size: float
    agreement: float
    auc: float
    speed: dict[str, float]


LIMITS = {
    "fp16": Limits(1.0, 0.995, 0.001, {}),
    "w8": Limits(0.30, 0.995, 0.001, {}),
    "int8": Limits(0.32, 0.99, 0.002, {"mobilenet_v3_small": 1.0, "mobilenet_v2": 1.4}),
}


def export(run: Run, data: Path, cache: Path | None, out: Path, qat: bool) -> tuple[Bundle, float]:
    """The bundle, and the seconds that it took."""
    started = time.perf_counter()
    targets = tuple(target for target in TARGETS if target.format == "onnx")
    say = partial(print, flush=True)
    return export_run(run, out, targets, data=data, cache=cache, qat=qat, say=say), time.perf_counter() - started


def compare(name: str, run: Run, bundle: Bundle, chosen: ChosenSet, rounds: int) -> list[list[str]]:
    """A row for each file."""
    models = {target.precision: Model(path, threads=1).load() for target, path in bundle.files}
    size = run.record.preprocessing.size
    picture: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    roads: dict[str, Callable[[], object]] = {
        precision: partial(model.run, picture, model.manifest.outputs) for precision, model in models.items()
    }
    seconds = interleaved(roads, rounds)
    found = {
        precision: predict_set(
            model_logits(model), chosen.data, chosen.positions, run.record.labels, temperature=run.record.temperature
        )
        for precision, model in models.items()
    }
    reference = found["fp32"]
    rows = []
    for precision, each in found.items():
        smaller = models[precision].size / models["fp32"].size
        agreement = float((each.logits.argmax(1) == reference.logits.argmax(1)).mean())
        loss = auc_of(reference) - auc_of(each)
        speed = ratio(seconds["fp32"], seconds[precision])
        quantization = models[precision].manifest.quantization
        blocks = f"{len(quantization.integer_blocks)} integer" if quantization and quantization.integer_blocks else ""
        missed = misses(precision, run.record.settings.architecture, smaller, agreement, loss, speed)
        shown = [f"{smaller:.3f}", f"{agreement:.2%}", f"{loss:+.4f}", f"{speed:.2f}", blocks, ", ".join(missed)]
        rows.append([name, precision, str(len(each.truth)), *shown])
    return rows


def auc_of(predictions: Predictions) -> float:
    """The mean AUC; NaN where the test images lack a class."""
    interval = predictions.evaluation.auc
    return float("nan") if interval is None else interval.value


def misses(precision: str, architecture: str, size: float, agreement: float, loss: float, speed: float) -> list[str]:
    """The targets that these figures do not reach."""
    limits = LIMITS.get(precision)
    if limits is None:
        return []
    least = limits.speed.get(architecture, 0.0)
    wrong = {
        f"size > {limits.size}": size > limits.size,
        f"top-1 < {limits.agreement:.1%}": agreement < limits.agreement,
        f"AUC loss > {limits.auc}": not abs(loss) <= limits.auc,
        f"speed < {least}": speed < least,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="RUN=DATA", help="a run, and the images that it was trained on")
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    parser.add_argument("--rounds", type=int, default=200, help="of the latency measurement")
    parser.add_argument("--qat", action="store_true", help="fine-tune where int8 misses its budget")
    parser.add_argument("--keep", type=Path, help="folder for the bundles")
    options = parser.parse_args(arguments)
    rows: list[list[str]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        keep = options.keep or Path(scratch)
        for pair in options.pairs:
            folder, _, data = pair.partition("=")
            run, out = Run.open(Path(folder)), keep / Path(folder).name
            bundle, seconds = export(run, Path(data), options.cache, out, options.qat)
            notes.append(f"{out.name}: {run.record.settings.architecture}, exported in {seconds:.0f} s")
            notes += [f"{out.name}: no {target}: {reason}" for target, reason in bundle.failed.items()]
            size = run.record.preprocessing.size
            chosen = choose_set(Path(data), run.record.labels, size, split="test", run=run, cache=options.cache)
            rows += compare(out.name, run, bundle, chosen, options.rounds)
    head = [
        "run",
        "precision",
        "test images",
        "size / fp32",
        "same top-1",
        "AUC loss",
        "speed x fp32",
        "blocks",
        "misses",
    ]
    print("\n" + table(head, rows) + "\n")
    print("\n".join(f"- {note}" for note in notes))
    print(circumstances(("torch", "onnx")))


if __name__ == "__main__":
    main()
