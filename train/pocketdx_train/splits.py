"""Train, validation and test: stratified by class, never with one patient or one picture on two sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketdx_runtime.errors import printable
from pocketdx_train.cache import Decoded
from pocketdx_train.errors import DataError
from pocketdx_train.records import SPLITS


@dataclass(frozen=True)
class Fractions:
    """What part of the images goes to validation and test where the data does not say; each in (0, 1)."""

    val: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.val < 1 and 0 < self.test < 1 and self.val + self.test < 0.9):
            raise DataError(f"--val {self.val} and --test {self.test}: each above 0, together below 0.9")


@dataclass(frozen=True)
class DataReport:
    """What was found out about a data set before training on it. Lists hold image names as in `Record.name`.

    Attributes:
        counts: images by split and class.
        unreadable: what was wrong with each image that cannot be read.
        ignored: files and folders passed over; see `records.Source.ignored`.
        duplicates: groups of images with exactly the same pixels.
        duplicates_across_splits: those of them that stand in more than one split, by the data's own splits.
        duplicates_with_two_labels: those of them that carry different labels.
        patients_across_splits: patients with images in more than one split, by the data's own splits.
    """

    counts: Mapping[str, Mapping[str, int]]
    unreadable: tuple[str, ...]
    ignored: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]
    duplicates_across_splits: tuple[tuple[str, ...], ...]
    duplicates_with_two_labels: tuple[tuple[str, ...], ...]
    patients_across_splits: tuple[str, ...]

    def lines(self) -> list[str]:
        """The findings, a line each, for people."""
        lines = []
        for split, counts in self.counts.items():
            by_class = ", ".join(f"{name} {count}" for name, count in counts.items())
            lines.append(f"{split}: {sum(counts.values())} images ({by_class})")
        lines += _listed("unreadable, left out", self.unreadable)
        lines += _listed("left out, not an image by its name or in no class's folder", self.ignored)
        if self.duplicates:
            copies = sum(len(group) - 1 for group in self.duplicates)
            lines.append(f"exact duplicates: {copies} in {len(self.duplicates)} groups")
        crossing = [" = ".join(group) for group in self.duplicates_across_splits]
        lines += _listed("duplicates across splits, the test figures will be too good", crossing)
        two_labels = [" = ".join(group) for group in self.duplicates_with_two_labels]
        lines += _listed("the same picture under two labels, one of them is wrong", two_labels)
        lines += _listed(
            "patients in more than one split, the test figures may be too good", self.patients_across_splits
        )
        return [printable(line) for line in lines]


def _listed(title: str, names: Sequence[str], most: int = 5) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - most} more (all in data.json)" if len(names) > most else ""
    return [f"{title}: {len(names)}: {', '.join(names[:most])}{more}"]


def assign_splits(
    data: Decoded, labels: Sequence[str], *, fractions: Fractions = Fractions(), seed: int = 0
) -> tuple[str, ...]:
    """The split of each record: the data's own where it has one, else drawn; "" where the picture is unreadable.

    Validation is drawn from train where the data has no validation split, and so is test. Images of one patient, and
    exact duplicates, stay together; each class gives about its fraction, and one image at least.

    Args:
        data: the decoded records.
        labels: the class names.
        fractions: of the images, for the splits that are drawn.
        seed: of the draw.

    Raises:
        DataError: a class is missing from a split.
    """
    splits = [
        "" if position in data.problems else record.split or "train" for position, record in enumerate(data.records)
    ]
    given = {record.split for record in data.records}
    wanted = [(name, part) for name, part in (("test", fractions.test), ("val", fractions.val)) if name not in given]
    groups = _groups(data)
    rng = np.random.Generator(np.random.PCG64(seed))
    share_left = 1.0
    for number, (split, fraction) in enumerate(wanted):
        draw = _Draw(splits, data, groups, rng, keep=len(wanted) - number)
        for position in draw.positions(labels, fraction / share_left):
            splits[position] = split
        share_left -= fraction
    _check(splits, data, labels)
    return tuple(splits)


def report(data: Decoded, splits: Sequence[str], labels: Sequence[str], ignored: Sequence[str]) -> DataReport:
    """What there is to say about the data under these splits."""
    counts = {split: dict.fromkeys(labels, 0) for split in SPLITS}
    patients: dict[str, set[str]] = defaultdict(set)
    same: dict[str, list[int]] = defaultdict(list)
    for position, (record, split) in enumerate(zip(data.records, splits, strict=True)):
        if not split:
            continue
        counts[split][record.label] += 1
        same[data.digests[position]].append(position)
        if record.patient is not None:
            patients[record.patient].add(split)
    duplicates = [group for group in same.values() if len(group) > 1]

    def names(chosen: list[list[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(data.records[i].name for i in group) for group in chosen)

    return DataReport(
        counts=counts,
        unreadable=tuple(data.problems.values()),
        ignored=tuple(ignored),
        duplicates=names(duplicates),
        duplicates_across_splits=names([g for g in duplicates if len({splits[i] for i in g}) > 1]),
        duplicates_with_two_labels=names([g for g in duplicates if len({data.records[i].label for i in g}) > 1]),
        patients_across_splits=tuple(sorted(p for p, found in patients.items() if len(found) > 1)),
    )


def _groups(data: Decoded) -> list[int]:
    """Union-find over shared patients and shared pixels: the group of each record."""
    parent = list(range(len(data.records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for position, (record, digest) in enumerate(zip(data.records, data.digests, strict=True)):
        for kind, key in (("patient", record.patient), ("pixels", digest)):
            if key:
                parent[root(position)] = root(first.setdefault((kind, key), position))
    return [root(i) for i in range(len(parent))]


class _Draw:
    """One split drawn out of train, whole groups at a time.

    A group belongs to the stratum of the rarest of its classes, and the rarest class is drawn first: what is common
    can be made up for later, what is rare cannot.

    Args:
        splits: so far; groups are drawn from those in "train".
        data: the records.
        groups: of each record.
        rng: for the order within a stratum.
        keep: in how many groups left in train each class must stay.
    """

    def __init__(
        self, splits: Sequence[str], data: Decoded, groups: Sequence[int], rng: np.random.Generator, *, keep: int
    ) -> None:
        self.members: dict[int, list[int]] = {}
        for position, group in enumerate(groups):
            if splits[position] == "train":
                self.members.setdefault(group, []).append(position)
        self.counts = {
            group: Counter(data.records[i].label for i in positions) for group, positions in self.members.items()
        }
        self.holders = Counter(label for counts in self.counts.values() for label in counts)
        self.rng = rng
        self.keep = keep
        self.drawn: Counter[str] = Counter()

    def positions(self, labels: Sequence[str], fraction: float) -> Iterator[int]:
        """Positions of the records drawn: about `fraction` of each class, and of each class at least one."""
        total = sum(self.counts.values(), Counter[str]())
        rarest_first = sorted(labels, key=lambda label: (total[label], label))
        strata: dict[str, list[int]] = {label: [] for label in labels}
        for group, counts in self.counts.items():
            strata[next(label for label in rarest_first if counts[label])].append(group)
        for label in rarest_first:
            wanted = fraction * total[label]
            for number in self.rng.permutation(len(strata[label])):
                group = strata[label][number]
                size = self.counts[group][label] if group in self.counts else 0
                if 0 < size / 2 <= wanted - self.drawn[label] and self._may_leave(group):
                    yield from self._take(group)
            if not self.drawn[label]:
                able = [group for group in self.counts if self.counts[group][label] and self._may_leave(group)]
                if able:
                    yield from self._take(min(able, key=lambda group: len(self.members[group])))

    def _may_leave(self, group: int) -> bool:
        return all(self.holders[label] > self.keep for label in self.counts[group])

    def _take(self, group: int) -> list[int]:
        counts = self.counts.pop(group)
        self.drawn.update(counts)
        self.holders.subtract(dict.fromkeys(counts, 1))
        return self.members[group]


def _check(splits: Sequence[str], data: Decoded, labels: Sequence[str]) -> None:
    present = {(split, record.label) for split, record in zip(splits, data.records, strict=True)}
    for split in SPLITS:
        missing = [label for label in labels if (split, label) not in present]
        if missing:
            raise DataError(
                f"no readable image of {', '.join(missing)} is left for the {split} split; add images "
                "(each class needs three or more, of different patients)"
            )
