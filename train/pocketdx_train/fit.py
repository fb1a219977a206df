"""`train`: from labelled images to a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train import loop
from pocketdx_train.architectures import IMAGENET_MEAN, IMAGENET_STD, Network, initialise
from pocketdx_train.cache import Progress
from pocketdx_train.callbacks import Averaging, History, Keeper, ProgressLine
from pocketdx_train.finish import Finished, finish
from pocketdx_train.loading import mix
from pocketdx_train.loop import Machine
from pocketdx_train.prepare import prepare
from pocketdx_train.settings import TrainSettings
from pocketdx_train.sources import classes, open_source
from pocketdx_train.teacher import check_not_taught_on_test, open_teacher
from pocketdx_train.unfinished import Begun, Unfinished

__all__ = ["Finished", "Machine", "train"]


def _nobody_listens(line: str) -> None:
    """Take no notice of a line for people."""


def train(
    path: Path,
    out: Path,
    settings: TrainSettings,
    *,
    machine: Machine | None = None,
    resume: bool = False,
    force: bool = False,
    cache: Path | None = None,
    tensorboard: bool = False,
    show_progress: bool = False,
    decoding: Progress | None = None,
    say: Callable[[str], None] = _nobody_listens,
) -> Finished | None:
    """Train, and write the run to `out`, which appears when it is whole; until then it is `out` + ".unfinished".

    Args:
        path: the data set.
        out: the run's folder.
        settings: how to train.
        machine: what on; by default Lightning's choice.
        resume: go on with an unfinished run from its last whole epoch.
        force: replace a finished run, and drop an unfinished one unless it is resumed.
        cache: folder of decoded images.
        tensorboard: also log for TensorBoard.
        show_progress: follow the epochs on stderr.
        decoding: called with (done, all) while pictures are decoded.
        say: called with lines for people.

    Returns:
        The run; None on all but the first process of a distributed training.

    Raises:
        TrainError: bad data, settings, weights or checkpoint; or `out` exists.
        OutputError: the run cannot be written.
    """
    machine, unfinished = machine or Machine(), Unfinished(out)
    history = History(unfinished.history)
    keeper = Keeper(
        settings.monitor,
        settings.patience,
        last=unfinished.last,
        best=unfinished.best,
        head_epochs=settings.first_epochs,
        epochs=settings.epochs if settings.soup > 1 else None,
    )
    callbacks = [history, keeper, *_more_callbacks(settings, show_progress)]
    with loop.quiet():
        # What can be refused is refused before hours are spent on decoding.
        trainer = loop.make_trainer(settings, machine, callbacks, folder=unfinished.folder, tensorboard=tensorboard)
        first = trainer.is_global_zero
        if first:
            unfinished.check(resume=resume, force=force)
        source = open_source(path, patient_regex=settings.patient_regex)
        labels = classes(source)
        network = _network(settings, len(labels))
        teachers = [open_teacher(folder, labels, network.preprocessing) for folder in settings.teacher]
        prepared = prepare(source, labels, settings, cache=cache, progress=decoding)
        for line in prepared.report.lines() if first else ():
            say(line)
        for teacher in teachers:
            check_not_taught_on_test(teacher, prepared)
        begun = Begun.with_(settings, prepared, trainer.world_size, teachers)
        with unfinished.opened(begun, prepared, resume=resume) if first else nullcontext():
            state = unfinished.last if resume and unfinished.last.is_file() else None
            loop.fit(
                trainer,
                network,
                prepared,
                settings,
                teachers=[teacher.network() for teacher in teachers],
                workers=machine.workers,
                state=state,
            )
            if not first:
                return None
            device = trainer.strategy.root_device
            return finish(network, prepared, settings, unfinished, history, keeper, device=device, force=force)


def _more_callbacks(settings: TrainSettings, show_progress: bool) -> Iterator[Callback]:
    if settings.ema or settings.soup > 1:
        yield Averaging(settings.ema, head_epochs=settings.first_epochs, epochs=settings.epochs)
    if show_progress:
        yield ProgressLine(sys.stderr, settings.all_epochs)


def _network(settings: TrainSettings, classes: int) -> Network:
    """The network as training starts it; a function of the settings alone."""
    torch.manual_seed(mix(settings.seed))
    preprocessing = Preprocessing(settings.size, IMAGENET_MEAN, IMAGENET_STD)
    network = Network(settings.architecture, classes, preprocessing, dropout=settings.dropout)
    initialise(network, settings.weights)
    return network.to(memory_format=torch.channels_last)
