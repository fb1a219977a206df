"""A run as the teacher of another: what must agree before its answers can stand for labels."""

from __future__ import annotations

from pathlib import Path

from pocketdx_runtime.manifest import Preprocessing
from pocketdx_train.errors import TrainError
from pocketdx_train.prepare import Prepared
from pocketdx_train.run import Run


def open_teacher(folder: str, labels: tuple[str, ...], preprocessing: Preprocessing) -> Run:
    """The run in ``folder``.

    Args:
        folder: one of `TrainSettings.teacher`.
        labels: of the data, in the order of the logits.
        preprocessing: of the network that will learn; both are given the same numbers.

    Raises:
        CheckpointError: it is no finished run, or damaged.
        TrainError: it has other labels or another preprocessing.
    """
    run = Run.open(Path(folder))
    if run.record.labels != labels:
        raise TrainError(
            f"--teacher {folder}: its classes are {', '.join(run.record.labels)}, those of the data "
            f"{', '.join(labels)}; give a run of the same classes"
        )
    if run.record.preprocessing != preprocessing:
        raise TrainError(
            f"--teacher {folder}: it takes pictures of {run.record.preprocessing.size} px, this network "
            f"{preprocessing.size} px; give --size {run.record.preprocessing.size}"
            if run.record.preprocessing.size != preprocessing.size
            else f"--teacher {folder}: it normalises pictures in another way; give a run of this version"
        )
    return run


def check_not_taught_on_test(teacher: Run, prepared: Prepared) -> None:
    """Refuse a teacher that has learnt the pictures by which its pupil will be judged: it would pass them on.

    Raises:
        TrainError: pictures of this run's validation or test were in the teacher's training split.
        CheckpointError: the teacher's splits are missing.
    """
    learnt = {name for name, split in teacher.splits().items() if split == "train"}
    for split in ("test", "val"):
        known = learnt & {prepared.data.records[i].name for i in prepared.positions(split)}
        if known:
            raise TrainError(
                f"--teacher {teacher.folder}: it has learnt {len(known)} pictures of the {split} split, such as "
                f"{min(known)}; train it on the same data with the same --seed or --split-seed"
            )
