"""`pocketdx train` and `pocketdx evaluate`. Torch is imported when a command runs, not before."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pocketdx_runtime.conform import to_plain
from pocketdx_runtime.errors import printable
from pocketdx_runtime.output import to_json
from pocketdx_train.settings import (
    ACCELERATORS,
    ARCHITECTURES,
    AUGMENTATIONS,
    BALANCING,
    FINETUNING,
    MONITORS,
    PRECISIONS,
    TrainSettings,
    flag,
)

if TYPE_CHECKING:
    from pocketdx_train.cache import Progress
    from pocketdx_train.metrics import Evaluation

_F = TypeVar("_F", bound=Callable[..., Any])

_DEFAULTS = TrainSettings()
# What cannot be read is said by who reads it, in one line; click would print its usage as well.
_PATH = click.Path(path_type=Path, readable=False)


def _setting(name: str, text: str, **kind: Any) -> Callable[[_F], _F]:
    """A `click` option for one field of `TrainSettings`, with its default."""
    default = getattr(_DEFAULTS, name)
    return click.option(flag(name), name, default=default, show_default=default not in (None, ()), help=text, **kind)


@click.command()
@click.argument("data", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder of the run; must not exist.")
@_setting("architecture", "Which network.", type=click.Choice(ARCHITECTURES))
@_setting("weights", "Where to start: imagenet (downloaded), none, or a .safetensors file.")
@_setting("size", "Side of the network's input in pixels.")
@_setting("epochs", "Epochs in which every layer learns.")
@_setting("head_epochs", "Epochs before them in which only the classifier learns.")
@_setting("finetune", "Which layers learn.", type=click.Choice(FINETUNING))
@_setting("batch_size", "Images a step and device.")
@_setting("lr", "Peak learning rate.")
@_setting("head_lr", "Learning rate of the classifier's own epochs.")
@_setting("weight_decay", "Decoupled weight decay.")
@_setting("warmup", "Share of the steps in which the learning rate rises.")
@_setting("label_smoothing", "Label smoothing.")
@_setting("mixup", "Alpha of mixup; 0 is off.")
@_setting("dropout", "Dropout before the last layer.")
@_setting("balance", "How classes of different size are evened out.", type=click.Choice(BALANCING))
@_setting("augment", "How pictures are varied in training.", type=click.Choice(AUGMENTATIONS))
@_setting("ema", "Decay of the weights' moving average; 0 is off.")
@_setting("teacher", "Run whose network is learnt from instead of the labels; of several, the mean.", multiple=True)
@_setting("soup", "Trainings from the same start whose weights are averaged; each costs --epochs.")
@_setting("patience", "Stop after so many epochs without a better AUC; 0 is never.")
@_setting("monitor", "What chooses the epoch that is kept.", type=click.Choice(MONITORS))
@_setting("val_fraction", "Part kept for validation, if the data has no such split.")
@_setting("test_fraction", "Part kept for the test, if the data has no such split.")
@_setting("patient_regex", "Finds the patient in a file name: 'person(\\d+)_'.")
@_setting("seed", "Of everything random.")
@_setting("split_seed", "Of the splits that are drawn. [default: --seed]", type=int)
@_setting("precision", "Of the arithmetic in training.", type=click.Choice(PRECISIONS))
@click.option("--accelerator", default="auto", show_default=True, type=click.Choice(ACCELERATORS), help="What on.")
@click.option("--devices", default="auto", show_default=True, help="auto, how many on each node, or which: 0,1.")
@click.option("--nodes", default=1, show_default=True, help="Machines that train together.")
@click.option("--workers", default=0, show_default=True, help="Processes that augment; 0: the training process.")
@click.option("--cache", type=_PATH, help="Folder of decoded images. [default: ~/.cache/pocketdx]")
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run.")
@click.option("--force", is_flag=True, help="Replace the run that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the test figures as JSON.")
def train(
    data: Path,
    out: Path,
    accelerator: str,
    devices: str,
    nodes: int,
    workers: int,
    cache: Path | None,
    tensorboard: bool,
    resume: bool,
    force: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Train a MobileNet on DATA: a folder per class, a .csv or .parquet of paths and labels, or a MedMNIST .npz.

    \b
    pocketdx train xrays --out run --patient-regex 'person(\\d+)_'
    pocketdx train cells.csv --out run --architecture mobilenet_v2 --weights v2.safetensors
    """
    settings = TrainSettings(**choices)

    # Before torch is imported: it logs advice on distributed training, which is not the user's concern here.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pocketdx_train import fit
    from pocketdx_train.run import unfinished_folder

    with _ended_by_sigterm():
        try:
            finished = fit.train(
                data,
                out,
                settings,
                machine=fit.Machine(accelerator, devices, nodes, workers),
                resume=resume,
                force=force,
                cache=cache,
                tensorboard=tensorboard,
                show_progress=sys.stderr.isatty(),
                decoding=decoding_progress(),
                say=(lambda _: None) if as_json else click.echo,
            )
        except KeyboardInterrupt:
            if unfinished_folder(out).is_dir():
                click.echo("\nstopped; the same command with --resume goes on after the last whole epoch", err=True)
            raise
    if finished is None:  # a helper process of a distributed training
        return
    about = {"run": str(out), "split": "test", "data": to_plain(finished.report)}
    _show(finished.test.evaluation, as_json=as_json, about=about)
    if not as_json:
        click.echo(f"\nThe run is in {printable(str(out))}; next: pocketdx export {printable(str(out))} --out BUNDLE")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Stop at once when asked to by the system; Lightning would first end the epoch."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.argument("model", metavar="RUN|MODEL", type=_PATH)
@click.argument("data", type=_PATH)
@click.option("--split", type=click.Choice(["train", "val", "test", "all"]), help="[default: test, if there is one]")
@click.option("--patient-regex", help="Finds the patient in a file name: intervals are then by patient.")
@click.option("--cache", type=_PATH, help="Folder of decoded images. [default: ~/.cache/pocketdx]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    model: Path, data: Path, split: str | None, patient_regex: str | None, cache: Path | None, as_json: bool
) -> None:
    """Figures with 95 % intervals of a RUN (in PyTorch) or an exported MODEL (in onnxruntime) on labelled DATA.

    \b
    pocketdx evaluate run xrays
    pocketdx evaluate bundle/model.fp32.onnx other-hospital --split all
    """
    from pocketdx_runtime.model import Model
    from pocketdx_train.evaluation import choose_set, model_logits, network_logits, predict_set
    from pocketdx_train.run import Run

    if model.is_dir():
        run, trained_on = Run.open(model), ""
        labels, size, temperature = run.record.labels, run.record.preprocessing.size, run.record.temperature
        predict = network_logits(run.network())
    else:
        run, loaded = None, Model(model)
        manifest, trained_on = loaded.manifest, loaded.manifest.data_fingerprint
        labels, size, temperature = manifest.labels, manifest.preprocessing.size, manifest.temperature
        predict = model_logits(loaded)
    chosen = choose_set(
        data,
        labels,
        size,
        split=split,
        run=run,
        trained_on=trained_on,
        patient_regex=patient_regex,
        cache=cache,
        progress=decoding_progress(),
    )
    predictions = predict_set(predict, chosen.data, chosen.positions, labels, temperature=temperature)
    unreadable = list(chosen.data.problems.values())
    for problem in () if as_json else unreadable:
        click.echo(f"left out: {problem}", err=True)
    about = {"model": str(model), "data": str(data), "split": chosen.split, "unreadable": unreadable}
    _show(predictions.evaluation, as_json=as_json, about=about)


def _show(evaluation: Evaluation, *, as_json: bool, about: dict[str, Any]) -> None:
    from pocketdx_train.metrics import format_table

    if as_json:
        click.echo(to_json(about | evaluation.to_dict()))
    else:
        click.echo(f"\n{about['split']} split" if about["split"] != "all" else "\nall images")
        click.echo(format_table(evaluation))


def decoding_progress(verb: str = "decoding") -> Progress | None:
    """A progress line on a terminal; None in a pipe."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, count: int) -> None:
        if done == count or done % 50 == 0:
            end = "\n" if done == count else ""
            click.echo(f"\r{verb} {done}/{count}{end}", err=True, nl=False)

    return show
