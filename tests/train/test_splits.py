"""No patient and no picture on two sides, every class on each, near the fractions asked for, the same each time."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketdx_train.cache import Decoded
from pocketdx_train.errors import DataError
from pocketdx_train.records import Record
from pocketdx_train.sources import classes, open_source
from pocketdx_train.splits import Fractions, assign_splits, report

Fill = Callable[..., Path]
Draw = Callable[..., NDArray[np.uint8]]
Save = Callable[[Path, NDArray[np.uint8]], Path]
Decode = Callable[..., Decoded]
SPLITS = ("train", "val", "test")


def data(
    records: Sequence[tuple[str, str | None, str]], *, split: str | None = None, bad: tuple[int, ...] = ()
) -> Decoded:
    """Records of (label, patient, digest of the pixels), without pixels."""
    made = tuple(Record(f"{i}.png", label, patient, split) for i, (label, patient, _) in enumerate(records))
    digests = tuple("" if i in bad else digest for i, (*_, digest) in enumerate(records))
    pixels = np.zeros((len(records), 1, 1, 3), np.uint8)
    return Decoded(made, pixels, digests, {i: f"{i}.png: truncated" for i in bad})


def collection(seed: int, classes: int, patients: int) -> Decoded:
    """Patients with one to four images, one image in ten of another class, one in fifty the same as another."""
    rng = np.random.default_rng(seed)
    labels = "abc"[:classes]
    records: list[tuple[str, str | None, str]] = []
    for label in labels:
        for number in range(patients):
            patient = f"{label}{number}" if rng.random() < 0.7 else None
            for _ in range(rng.integers(1, 5) if patient else 1):
                second = rng.choice(list(labels)) if rng.random() < 0.1 else label
                pixels = f"shared{rng.integers(5)}" if rng.random() < 0.02 else f"{len(records)}"
                records.append((str(second), patient, pixels))
    return data(records)


def splits_by(keys: list[str | None], splits: tuple[str, ...]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key, split in zip(keys, splits, strict=True):
        if key:
            found[key].add(split)
    return found


@given(
    st.integers(0, 2**32), st.integers(2, 3), st.integers(15, 40), st.sampled_from([(0.1, 0.2), (0.2, 0.2), (0.3, 0.4)])
)
@settings(max_examples=100, deadline=None)
def test_any_collection_is_split_without_leaks_near_the_fractions_with_every_class_on_each_side(
    seed: int, classes: int, patients: int, parts: tuple[float, float]
) -> None:
    decoded, labels, fractions = collection(seed, classes, patients), tuple("abc"[:classes]), Fractions(*parts)
    splits = assign_splits(decoded, labels, fractions=fractions, seed=seed % 1000)
    by_patient = splits_by([record.patient for record in decoded.records], splits)
    by_picture = splits_by(list(decoded.digests), splits)
    assert all(len(found) == 1 for found in [*by_patient.values(), *by_picture.values()])
    counts = Counter((record.label, split) for record, split in zip(decoded.records, splits, strict=True))
    for label in labels:
        whole = sum(counts[label, split] for split in SPLITS)
        assert counts[label, "train"] > 0
        for split, part in (("val", fractions.val), ("test", fractions.test)):
            assert counts[label, split] > 0
            assert abs(counts[label, split] - part * whole) <= max(6, 0.1 * whole)
    assert splits == assign_splits(decoded, labels, fractions=fractions, seed=seed % 1000)


@given(st.lists(st.integers(20, 120), min_size=2, max_size=4), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_of_images_that_stand_alone_each_class_gives_its_fraction_to_within_one_image(
    sizes: list[int], seed: int
) -> None:
    records: list[tuple[str, str | None, str]] = []
    for number, size in enumerate(sizes):
        records += [(f"class {number}", None, f"{number}/{i}") for i in range(size)]
    labels = tuple(f"class {number}" for number in range(len(sizes)))
    splits = assign_splits(data(records), labels, fractions=Fractions(val=0.1, test=0.2), seed=seed)
    counts = Counter((record[0], split) for record, split in zip(records, splits, strict=True))
    for label, size in zip(labels, sizes, strict=True):
        assert abs(counts[label, "test"] - 0.2 * size) <= 1
        assert abs(counts[label, "val"] - 0.1 * size) <= 1


def test_a_patient_with_half_of_a_class_does_not_make_validation_half_of_it() -> None:
    records: list[tuple[str, str | None, str]] = [("a", "big", f"big{i}") for i in range(50)]
    records += [("a", f"a{i}", f"a{i}") for i in range(50)] + [("b", f"b{i}", f"b{i}") for i in range(100)]
    for seed in range(20):
        splits = assign_splits(data(records), ("a", "b"), fractions=Fractions(0.1, 0.2), seed=seed)
        counts = Counter((record[0], split) for record, split in zip(records, splits, strict=True))
        assert counts["a", "test"] == 20
        assert counts["a", "val"] == 10


def test_a_rare_class_whose_patients_have_a_common_one_too_reaches_every_split() -> None:
    records: list[tuple[str, str | None, str]] = []
    for patient in range(60):
        records += [("healthy", f"p{patient}", f"p{patient}/{i}") for i in range(5)]
        if patient < 6:
            records += [("rare", f"p{patient}", f"p{patient}/rare")]
    for seed in range(20):
        splits = assign_splits(data(records), ("healthy", "rare"), seed=seed)
        counts = Counter((record[0], split) for record, split in zip(records, splits, strict=True))
        assert counts["rare", "val"] == counts["rare", "test"] == 1
        assert 25 <= counts["healthy", "val"] <= 35
        assert 55 <= counts["healthy", "test"] <= 65


def test_three_patients_a_class_are_enough_and_two_are_refused_by_name() -> None:
    three = data([(label, f"{label}{i % 3}", f"{label}{i}") for label in "ab" for i in range(9)])
    splits = assign_splits(three, ("a", "b"), fractions=Fractions(0.4, 0.4))
    assert Counter(splits) == {"train": 6, "val": 6, "test": 6}
    two = data([("a", f"a{i % 2}", f"a{i}") for i in range(9)] + [("b", None, f"b{i}") for i in range(9)])
    with pytest.raises(DataError, match="no readable image of a is left for the test split; add images"):
        assign_splits(two, ("a", "b"))


def test_other_seeds_draw_other_images() -> None:
    decoded = data([(label, None, f"{label}{i}") for label in "ab" for i in range(50)])
    assert len({assign_splits(decoded, ("a", "b"), seed=seed) for seed in range(10)}) == 10


def test_the_datas_own_splits_are_kept_and_only_what_is_missing_is_drawn() -> None:
    made = data([(label, None, f"{label}{i}") for label in "ab" for i in range(40)])
    records = tuple(
        Record(record.name, record.label, None, "test" if i % 4 == 0 else "train")
        for i, record in enumerate(made.records)
    )
    splits = assign_splits(Decoded(records, made.pixels, made.digests, {}), ("a", "b"), fractions=Fractions(0.1, 0.5))
    assert [split == "test" for split in splits] == [record.split == "test" for record in records]
    assert Counter(splits) == {"train": 54, "val": 6, "test": 20}  # a tenth of the 60 in train


def test_unreadable_images_are_in_no_split() -> None:
    made = data([(label, None, f"{label}{i}") for label in "ab" for i in range(10)], bad=(3, 12))
    splits = assign_splits(made, ("a", "b"))
    assert [i for i, split in enumerate(splits) if not split] == [3, 12]


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.1, 1.0), (0.5, 0.5), (float("nan"), 0.2)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    with pytest.raises(DataError, match=f"--val {val} and --test {test}"):
        Fractions(val, test)


# --- what the report says --------------------------------------------------------------------------------------------


def reported(decode: Decode, folder: Path, **options: Any) -> tuple[Any, str]:
    decoded, source = decode(folder, **options), open_source(folder, **options)
    splits = assign_splits(decoded, classes(source))
    found = report(decoded, splits, classes(source), source.ignored)
    return found, "\n".join(found.lines())


def test_duplicates_are_found_across_splits_and_under_two_labels(
    filled_splits: Fill, decoded_folder: Decode, tmp_path: Path
) -> None:
    folder = filled_splits(tmp_path)
    shutil.copy(folder / "train/disk/000.png", folder / "train/disk/copy.png")
    shutil.copy(folder / "train/disk/001.png", folder / "test/disk/leak.png")
    shutil.copy(folder / "train/disk/002.png", folder / "train/stripes/wrong.png")
    found, text = reported(decoded_folder, folder)
    assert ("train/disk/000.png", "train/disk/copy.png") in found.duplicates
    assert found.duplicates_across_splits == (("train/disk/001.png", "test/disk/leak.png"),)
    assert found.duplicates_with_two_labels == (("train/disk/002.png", "train/stripes/wrong.png"),)
    assert "exact duplicates: 3 in 3 groups" in text
    assert "train/disk/001.png = test/disk/leak.png" in text
    assert "one of them is wrong: 1: train/disk/002.png = train/stripes/wrong.png" in text


def test_the_same_pixels_in_another_file_format_are_a_duplicate(
    filled: Fill, drawn: Draw, saved: Save, decoded_folder: Decode, tmp_path: Path
) -> None:
    filled(tmp_path, {"disk": 4, "stripes": 4})
    saved(tmp_path / "disk" / "copy.bmp", drawn("disk", 0))
    found, _ = reported(decoded_folder, tmp_path)
    assert found.duplicates == (("disk/000.png", "disk/copy.bmp"),)


def test_patients_in_more_than_one_split_are_named(filled_splits: Fill, decoded_folder: Decode, tmp_path: Path) -> None:
    folder = filled_splits(tmp_path)
    (folder / "train/disk/000.png").rename(folder / "train/disk/p7_0.png")
    (folder / "test/stripes/2000.png").rename(folder / "test/stripes/p7_1.png")
    (folder / "test/stripes/2001.png").rename(folder / "test/stripes/p8_1.png")
    found, text = reported(decoded_folder, folder, patient_regex=r"p(\d+)_")
    assert found.patients_across_splits == ("7",)
    assert "patients in more than one split, the test figures may be too good: 1: 7" in text


def test_unreadable_files_are_listed_by_name_with_the_reason(
    filled: Fill, decoded_folder: Decode, tmp_path: Path
) -> None:
    filled(tmp_path, {"disk": 5, "stripes": 5})
    whole = (tmp_path / "disk/000.png").read_bytes()
    (tmp_path / "disk/000.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "stripes/001.png").write_bytes(b"")
    found, text = reported(decoded_folder, tmp_path)
    assert [line.split(":")[0] for line in found.unreadable] == ["disk/000.png", "stripes/001.png"]
    assert "unreadable, left out: 2: disk/000.png: truncated PNG" in text


def test_long_lists_are_cut_for_people_and_no_name_breaks_a_line() -> None:
    made = data([("a", None, "same") for _ in range(3)] + [("b", None, f"{i}") for i in range(3)])
    found = report(made, ("train",) * 6, ("a", "b"), [f"{i}\n.txt" for i in range(9)])
    (line,) = [line for line in found.lines() if "left out" in line]
    assert "\\n.txt" in line
    assert "and 4 more (all in data.json)" in line
    assert all("\n" not in line for line in found.lines())
