"""The whole job on generated images: train, export, verify, use. What a newcomer runs first."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketdx_export.bundle import Bundle, add_file, export_run
from pocketdx_export.parity import Comparison, Report, compare_files, files_of
from pocketdx_export.parity.show.page import page
from pocketdx_export.targets import choose_targets
from pocketdx_runtime.files import folder_written_aside
from pocketdx_runtime.model import Model
from pocketdx_train import synthetic
from pocketdx_train.evaluation import choose_set
from pocketdx_train.fit import Finished, train
from pocketdx_train.metrics import format_table
from pocketdx_train.run import Run
from pocketdx_train.settings import TrainSettings
from pocketdx_train.white_cells import CLASSES

DATA, RUN, BUNDLE = "synthetic-smears", "run", "bundle"
PER_CLASS = {"train": 320, "val": 40, "test": 60}
# From nothing, in a minute or two on two cores: small pictures, a high learning rate, no head's phase.
SETTINGS = TrainSettings(
    weights="none",
    size=96,
    epochs=16,
    batch_size=32,
    lr=3e-3,
    finetune="full",
    augment="light",
    monitor="val_auc",
    ema=0.98,
)


@dataclass(frozen=True)
class Demo:
    """What the demo made, and what it found.

    Attributes:
        folder: holds the generated images, the run and the bundle.
        finished: the trained run with its test figures.
        bundle: the exported files.
        parity: the comparison of the files with the network.
    """

    folder: Path
    finished: Finished
    bundle: Bundle
    parity: Report


def run_demo(
    out: Path, *, seed: int = 0, force: bool = False, show_progress: bool = False, say: Callable[[str], None]
) -> Demo:
    """Generate, train, export, compare, predict, all in the new folder `out`, which appears when all is done.

    Args:
        out: the folder.
        seed: of the images and the training.
        force: replace the demo that is there.
        show_progress: draw a progress bar.
        say: called with lines for people.

    Raises:
        OutputError: `out` exists, or cannot be written.
    """
    with folder_written_aside(out, overwrite=force, marker=BUNDLE) as aside:
        say("1. Generate: synthetic microscope fields of drawn blood cells (no patient's images)")
        synthetic.generate(aside / DATA, per_class=PER_CLASS, seed=seed)
        say(f"   {sum(PER_CLASS.values()) * len(CLASSES)} images, {len(CLASSES)} classes")

        say(f"\n2. Train: {SETTINGS.architecture} from random weights, {SETTINGS.epochs} epochs")
        started = time.monotonic()
        settings = dataclasses.replace(SETTINGS, seed=seed)
        finished = train(
            aside / DATA, aside / RUN, settings, cache=aside / "cache", show_progress=show_progress, say=_indented(say)
        )
        assert finished is not None  # one process
        say(f"   {time.monotonic() - started:.0f} s; on test:")
        _indented(say)(format_table(finished.test.evaluation))

        say("\n3. Export: one self-contained ONNX file, preprocessing inside")
        run = Run.open(aside / RUN)
        targets = choose_targets(("onnx",), (), has_data=False)
        bundle = export_run(run, aside / BUNDLE, targets, name="synthetic-smears-demo", say=_indented(say))

        say("\n4. Verify: the files against the full PyTorch model, from the image files on")
        chosen = choose_set(
            aside / DATA, run.record.labels, SETTINGS.size, split="test", run=run, cache=aside / "cache"
        )
        report = compare_files(Comparison(run, chosen, files_of(bundle), backends=("onnxruntime",)))
        add_file(bundle.folder, "parity.json", report.to_json())
        add_file(bundle.folder, "report.html", page(report, None))
        _indented(say)(report.table())

        say("\n5. Use: the file alone, without PyTorch")
        model = Model(bundle.files[0][1])
        pictures = [path for name in CLASSES for path in sorted((aside / DATA / "test" / name).iterdir())[:2]]
        for path, diagnosis in zip(pictures, model.diagnose(pictures), strict=True):
            say(f"   {path.parent.name:12} {path.name:28} -> {diagnosis.label} ({diagnosis.probability:.3f})")
        shutil.rmtree(aside / "cache")
    return Demo(out, finished, Bundle.open(out / BUNDLE), report)


def next_steps(demo: Demo) -> str:
    """Where things are, and how to go on."""
    bundle, data = demo.folder / BUNDLE, demo.folder / DATA
    file = bundle / demo.bundle.files[0][1].name
    picture = next(path for path in sorted((data / "test").rglob("*.jpg")))
    return f"""
Everything is in {demo.folder}: the images ({DATA}), the run ({RUN}: curves.png, confusion.png), the {BUNDLE}.

Go on:
  pocketdx predict {file} {picture}
  pocketdx serve {file}

Your own images, one folder per class:
  pocketdx train IMAGES --out my-run
  pocketdx export my-run --out my-bundle
  pocketdx parity my-bundle --against my-run --data IMAGES"""


def _indented(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say("\n".join(f"   {line}".rstrip() for line in text.splitlines()))
