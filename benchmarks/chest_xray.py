"""Train on the paediatric chest X-rays of Kermany et al. (2018), export, compare and report: a pupil of three a seed.

DATA holds `train` and `test`, each with a folder per class (NORMAL, PNEUMONIA), the file names as published: they tell
the patients, by whom validation is split off `train`. `test` is looked at once, by the finished network. Seeds whose
folder is complete are not trained again, and a training that was stopped goes on where it was.

    python benchmarks/chest_xray.py chest-xray --out results --weights mobilenet_v3_small.safetensors --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from measure import circumstances, table

from pocketdx_runtime.conform import to_plain
from pocketdx_train.settings import TrainSettings, flag

TEACHER: Mapping[str, Any] = {
    # All else is the default of `pocketdx train`. Chosen within `train` alone, never by test: learn from some kinds of
    # picture, look at others, as they are and under several simulated changes at once, as choose_recipe.py does. How
    # each choice fared there, and how little was tried, stands in RESULTS.md.
    "patient_regex": r"(person\d+)_|((?:NORMAL2-)?IM-\d+)-",
    "augment": "strong",
    "lr": 1e-3,
    "epochs": 2,
}
"""Fields of `TrainSettings`, of a network that learns the labels."""

TEACHERS = 3
RECIPE: Mapping[str, Any] = {**TEACHER, "epochs": 4}
"""Of the network that learns what so many of those say, in the mean; each has a seed of its own."""

PUBLISHED = (
    ("ResNet-18, ImageNet weights, fine-tuned, 224 px (Doerrich et al., 2025)", ".980", ".911"),
    ("Google AutoML Vision (Yang et al., 2023)", ".991", ".946"),
    ("ResNet-50, 224 px (Yang et al., 2023)", ".962", ".884"),
    ("ResNet-18, 28 px (Yang et al., 2023)", ".944", ".854"),
)
"""AUC and accuracy on the same 624 test images, as PneumoniaMNIST. Yang et al., MedMNIST v2, Scientific Data 2023;
Doerrich et al., Rethinking model prototyping through the MedMNIST+ dataset collection, Scientific Reports 2025."""
TARGETS = ("target", "0.970", "0.900", "30", "1e-4", "100 %")


@dataclass(frozen=True)
class Outcome:
    """What came of one seed.

    Attributes:
        seed: of the training.
        auc: on test, in [0, 1].
        accuracy: on test, in [0, 1].
        minutes: of all four trainings, evaluation included.
        images: of the test split that were compared.
        logits: largest difference between the exported file's logits and the network's, fed the same pixels.
        agreement: share of the images with the same top-1, each side with its own decoding, by the worst road.
        passed: parity's verdict over all its checks.
    """

    seed: int
    auc: float
    accuracy: float
    minutes: float
    images: int
    logits: float
    agreement: float
    passed: bool


def settings_for(seed: int, weights: str, folder: Path) -> TrainSettings:
    """The recipe with a seed and the weights to start from, taught by the runs in `folder`."""
    teachers = tuple(str(folder / f"teacher-{number}") for number in range(1, TEACHERS + 1))
    return TrainSettings(**RECIPE, seed=seed, weights=weights, teacher=teachers)


def trainings(run: str, pupil: TrainSettings) -> dict[str, TrainSettings]:
    """By folder, in order: the teachers and then the pupil, in `run`.

    Each teacher has a seed that no other network has, and the pupil's split, so that none learns what it is judged by.
    """
    teachers = {
        folder: TrainSettings(**TEACHER, seed=1000 * number + pupil.seed, split_seed=pupil.seed, weights=pupil.weights)
        for number, folder in enumerate(pupil.teacher, 1)
    }
    return {**teachers, run: pupil}


def train_command(data: Path, run: Path, settings: TrainSettings, machine: Sequence[str]) -> list[str]:
    """`pocketdx train` with every setting that is not the default; with --resume where it was stopped."""
    usual = asdict(TrainSettings())
    chosen = {name: value for name, value in asdict(settings).items() if value != usual[name]}
    flags = []
    for name, value in chosen.items():
        for each in value if isinstance(value, tuple) else (value,):
            flags += [flag(name), str(each)]
    resume = ["--resume"] if Path(f"{run}.unfinished", "begun.json").is_file() else []
    return ["train", str(data), "--out", str(run), *flags, *machine, *resume]


def measure(data: Path, folder: Path, settings: TrainSettings, machine: Sequence[str], cache: Sequence[str]) -> Outcome:
    """Train a seed's teachers and their pupil, export it and compare, or read what an earlier call left in `folder`.

    Raises:
        SystemExit: a command failed, or `folder` holds a run with other settings.
    """
    run, bundle, parity = folder / "run", folder / "bundle", folder / "parity.json"
    networks = trainings(str(run), settings)
    # A list: a run with other settings is refused before any is trained.
    for each in [each for each, its in networks.items() if not is_trained(Path(each), its)]:
        pocketdx([*train_command(data, Path(each), networks[each], machine), *cache])
    if not (bundle / "manifest.json").is_file():
        only = ["--format", "onnx", "--precision", "fp32"]
        pocketdx(["export", str(run), "--out", str(bundle), "--name", "chest-xray", *only])
    if not parity.is_file():
        compare = ["parity", str(bundle), "--against", str(run), "--data", str(data), "--split", "test", "--json"]
        answer = pocketdx([*compare, "--backend", "onnxruntime", *cache], accept=(0, 1))
        aside = parity.with_suffix(".part")
        aside.write_text(answer, "utf-8")
        aside.replace(parity)
    records = [json.loads(Path(each, "run.json").read_text("utf-8")) for each in networks]
    seconds = sum(each["seconds"] for each in records)
    return outcome({**records[-1], "seconds": seconds}, json.loads(parity.read_text("utf-8")))


def is_trained(run: Path, settings: TrainSettings) -> bool:
    """Whether the run is there.

    Raises:
        SystemExit: it is, but with other settings.
    """
    if not (run / "run.json").is_file():
        return False
    if (found := json.loads((run / "run.json").read_text("utf-8"))["settings"]) != (wanted := to_plain(settings)):
        other = ", ".join(name for name, value in wanted.items() if found.get(name) != value)
        raise SystemExit(f"{run}: trained with another {other}; choose another --out")
    return True


def outcome(run: Mapping[str, Any], parity: Mapping[str, Any]) -> Outcome:
    """Read the figures out of `run.json` and of parity's JSON."""
    (report,) = (
        each for each in parity["cells"] if each["file"].endswith("fp32.onnx") and each["backend"] == "onnxruntime"
    )

    def values(name: str, unknown: float) -> list[float]:
        return [unknown if c["value"] is None else c["value"] for c in report["checks"] if c["name"] == name]

    return Outcome(
        seed=run["settings"]["seed"],
        auc=run["metrics"]["test/auc"]["value"],
        accuracy=run["metrics"]["test/accuracy"]["value"],
        minutes=run["seconds"] / 60,
        images=report["images"],
        # What is not a number is null in the JSON: the worst that can be.
        logits=max(values("logits, max", math.inf)),
        agreement=min(values("top-1 agreement", 0.0)),
        passed=report["status"] == "passed",
    )


def report(outcomes: Sequence[Outcome]) -> str:
    """The table: a row a seed, their mean and spread, the targets, and what others published."""
    head = ["", "test AUC", "accuracy", "training, min", "logits, max", "same top-1", "parity"]
    rows = [
        [
            f"seed {each.seed}",
            f"{each.auc:.4f}",
            f"{each.accuracy:.4f}",
            f"{each.minutes:.1f}",
            f"{each.logits:.1e}",
            f"{each.agreement:.2%}",
            "passed" if each.passed else "FAILED",
        ]
        for each in outcomes
    ]
    figures = [[each.auc for each in outcomes], [each.accuracy for each in outcomes]]
    longest = max(each.minutes for each in outcomes)
    rows.append(["**mean**", *(f"**{mean(each):.4f}**" for each in figures), f"{longest:.1f} at most", "", "", ""])
    if len(outcomes) > 1:
        rows.append(["standard deviation", *(f"{stdev(each):.4f}" for each in figures), "", "", "", ""])
        rows.append(["smallest to largest", *(f"{min(each):.4f} to {max(each):.4f}" for each in figures), *[""] * 4])
    rows.append([*TARGETS, ""])
    rows += [[name, auc, accuracy, *[""] * 4] for name, auc, accuracy in PUBLISHED]
    return table(head, rows)


def pocketdx(arguments: Sequence[str], *, accept: tuple[int, ...] = (0,)) -> str:
    """Run a command, and give what it wrote to stdout.

    Raises:
        SystemExit: it ended with another status than those of `accept`.
    """
    print(f"pocketdx {arguments[0]} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pocketdx_runtime", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in accept:
        raise SystemExit(f"pocketdx {arguments[0]} ended with {done.returncode}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train and test")
    parser.add_argument("--weights", default="imagenet", help="to start from: imagenet, or a .safetensors file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each [0 1 2]")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; one that is there goes on")
    parser.add_argument("--workers", type=int, default=2, help="processes that augment; changes no figure [2]")
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    options = parser.parse_args()
    cache = ["--cache", str(options.cache)] if options.cache else []
    machine = ["--workers", str(options.workers)]
    outcomes = []
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        outcomes.append(measure(options.data, folder, settings_for(seed, options.weights, folder), machine, cache))
        print(f"seed {seed}: AUC {outcomes[-1].auc:.4f}, accuracy {outcomes[-1].accuracy:.4f}", file=sys.stderr)
    print(report(outcomes))
    settings = settings_for(options.seeds[0], "FILE" if options.weights != "imagenet" else "imagenet", Path())
    commands = [
        f"`pocketdx {' '.join(train_command(Path('DATA'), Path(run), its, []))}`"
        for run, its in trainings("RUN", settings).items()
    ]
    print(f"\nParity over all {outcomes[0].images} test images. Seed {settings.seed}:\n")
    print("\n".join(f"- {command}" for command in commands), end="\n\n")
    print(circumstances(["torch", "torchvision", "lightning", "onnx"]))


if __name__ == "__main__":
    main()
