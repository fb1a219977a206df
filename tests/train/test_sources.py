"""Every way in which people keep labelled images is read; what cannot be used is said, not crashed on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from pocketdx_train.errors import DataError
from pocketdx_train.sources import Source, classes, open_source

Fill = Callable[..., Path]
Draw = Callable[..., NDArray[np.uint8]]
Save = Callable[[Path, NDArray[np.uint8]], Path]


def names(source: Source) -> list[str]:
    return [record.name for record in source.records]


def splits(source: Source) -> set[str | None]:
    return {record.split for record in source.records}


def first_line(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- a folder per class ----------------------------------------------------------------------------------------------


def test_a_folder_per_class_is_read_in_an_order_of_its_own(filled: Fill, tmp_path: Path) -> None:
    source = open_source(filled(tmp_path, {"stripes": 2, "disk": 2}))
    assert names(source) == ["disk/000.png", "disk/001.png", "stripes/000.png", "stripes/001.png"]
    assert [record.label for record in source.records] == ["disk", "disk", "stripes", "stripes"]
    assert splits(source) == {None}
    assert classes(source) == ("disk", "stripes")


def test_split_folders_are_recognised_under_their_usual_names(filled: Fill, tmp_path: Path) -> None:
    for folder in ("Training", "valid", "TEST"):
        filled(tmp_path / folder, {"disk": 1, "stripes": 1})
    assert splits(open_source(tmp_path)) == {"train", "val", "test"}


def test_a_missing_validation_folder_is_left_to_be_drawn(filled: Fill, tmp_path: Path) -> None:
    for folder in ("train", "test"):
        filled(tmp_path / folder, {"disk": 1, "stripes": 1})
    assert splits(open_source(tmp_path)) == {"train", "test"}


def test_a_class_called_test_is_a_class_if_there_is_no_train(filled: Fill, tmp_path: Path) -> None:
    source = open_source(filled(tmp_path, {"test": 1, "control": 1}))
    assert classes(source) == ("control", "test")
    assert splits(source) == {None}


def test_two_folders_for_one_split_are_refused(filled: Fill, tmp_path: Path) -> None:
    for folder in ("train", "val", "validation"):
        filled(tmp_path / folder, {"disk": 1})
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    assert "val and validation" in first_line(error)


def test_stray_files_and_folders_are_passed_over_and_those_that_look_like_data_listed(
    filled: Fill, drawn: Draw, saved: Save, tmp_path: Path
) -> None:
    filled(tmp_path / "train", {"disk": 1, "stripes": 1})
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "train" / "disk" / "notes.txt").write_text("about")
    (tmp_path / "train" / "disk" / ".DS_Store").write_bytes(b"\0")
    saved(tmp_path / "train" / "disk" / ".ipynb_checkpoints" / "000.png", drawn("disk", 0))
    saved(tmp_path / "__MACOSX" / "disk" / "000.png", drawn("disk", 0))
    saved(tmp_path / "extra" / "disk" / "7.png", drawn("disk", 7))
    saved(tmp_path / "train" / "loose.png", drawn("disk", 8))
    (tmp_path / "train" / "empty").mkdir()
    source = open_source(tmp_path)
    assert names(source) == ["train/disk/000.png", "train/stripes/000.png"]
    assert set(source.ignored) == {"extra/", "train/loose.png", "train/disk/notes.txt", "train/empty/ (no images)"}


def test_files_without_an_ending_are_tried_for_dicom_often_has_none(filled: Fill, tmp_path: Path) -> None:
    filled(tmp_path, {"disk": 1, "stripes": 1})
    (tmp_path / "disk" / "IM0001").write_bytes(b"?")
    assert "disk/IM0001" in names(open_source(tmp_path))


def test_links_are_followed_a_loop_is_not_and_a_broken_link_is_not_forgotten(filled: Fill, tmp_path: Path) -> None:
    elsewhere = filled(tmp_path / "elsewhere", {"disk": 1, "stripes": 1})
    data = tmp_path / "data"
    data.mkdir()
    (data / "disk").symlink_to(elsewhere / "disk", target_is_directory=True)
    (data / "stripes").mkdir()
    (data / "stripes" / "ward").symlink_to(elsewhere / "stripes", target_is_directory=True)
    (data / "stripes" / "loop").symlink_to(data / "stripes", target_is_directory=True)
    (data / "stripes" / "gone.png").symlink_to(elsewhere / "no.png")
    assert names(open_source(data)) == ["disk/000.png", "stripes/gone.png", "stripes/ward/000.png"]


def test_a_folder_that_may_not_be_listed_is_an_error_not_a_smaller_data_set(
    filled: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, {"disk": 1, "stripes": 1})
    (tmp_path / "disk" / "ward").mkdir()
    scandir = os.scandir

    def refuse(path: str = ".") -> object:
        if str(path).endswith("ward"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    assert "ward: cannot be listed: Permission denied" in first_line(error)


def test_an_empty_folder_and_one_class_only_are_refused_with_what_is_expected(filled: Fill, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    assert f"{tmp_path}/CLASS/image.jpg" in first_line(error)
    with pytest.raises(DataError) as error:
        classes(open_source(filled(tmp_path, {"disk": 2})))
    assert "one class only (disk)" in first_line(error)


def test_a_class_whose_name_cannot_be_shown_is_refused(filled: Fill, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        classes(open_source(filled(tmp_path, {"disk\n": 1, "stripes": 1})))
    assert "another name" in first_line(error)


def test_numbered_classes_are_in_the_order_of_their_numbers(filled: Fill, tmp_path: Path) -> None:
    assert classes(open_source(filled(tmp_path, {"10": 1, "9": 1, "0": 1}))) == ("0", "9", "10")


# --- patients --------------------------------------------------------------------------------------------------------


def test_the_first_group_that_matched_names_the_patient(drawn: Draw, saved: Save, tmp_path: Path) -> None:
    for label, name in [("disk", "person12_virus_3"), ("stripes", "IM-0115-0001"), ("stripes", "other")]:
        saved(tmp_path / label / f"{name}.png", drawn(label, 0))
    source = open_source(tmp_path, patient_regex=r"person(\d+)_|IM-(\d+)")
    assert [record.patient for record in source.records] == ["12", "0115", None]


@pytest.mark.parametrize(("pattern", "remedy"), [("person(", "not a regular expression"), ("person", "brackets")])
def test_a_pattern_that_cannot_name_patients_is_refused(
    pattern: str, remedy: str, filled: Fill, tmp_path: Path
) -> None:
    filled(tmp_path, {"disk": 1, "stripes": 1})
    with pytest.raises(DataError) as error:
        open_source(tmp_path, patient_regex=pattern)
    assert remedy in first_line(error)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file_from_a_spreadsheet_is_read_with_byte_order_mark_odd_case_and_semicolons(tmp_path: Path) -> None:
    path = table(tmp_path / "cells.csv", "\ufeffPath; LABEL ;Patient;Split\na/1.png;WBC; 7 ;Train\n2.png;RBC;;VALID\n")
    source = open_source(path)
    first, second = source.records
    assert (first.name, first.label, first.patient, first.split) == ("a/1.png", "WBC", "7", "train")
    assert (second.name, second.label, second.patient, second.split) == ("2.png", "RBC", None, "val")
    assert list(source.pictures()) == [tmp_path / "a" / "1.png", tmp_path / "2.png"]


def test_a_table_may_give_absolute_paths(tmp_path: Path) -> None:
    path = table(tmp_path / "cells.csv", f"path,label\n{tmp_path}/x/1.png,a\n")
    assert list(open_source(path).pictures()) == [tmp_path / "x" / "1.png"]


def test_the_pattern_names_the_patients_that_the_table_does_not(tmp_path: Path) -> None:
    path = table(tmp_path / "cells.csv", "path,label,patient\np3_1.png,a,nine\np4_1.png,b,\n")
    source = open_source(path, patient_regex=r"p(\d+)_")
    assert [record.patient for record in source.records] == ["nine", "4"]


def test_a_parquet_table_is_read_and_nan_is_a_missing_cell(tmp_path: Path) -> None:
    columns = {"path": ["1.png", "2.png"], "label": [0, 1], "patient": pa.array([float("nan"), 4.0])}
    parquet.write_table(pa.table(columns), tmp_path / "cells.parquet")
    source = open_source(tmp_path / "cells.parquet")
    assert [(record.label, record.patient) for record in source.records] == [("0", None), ("1", "4.0")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ("path,label\n", "no rows"),
        ("file,class\n1.png,a\n", "no column path and no column label; it has file, class"),
        ("path,label\n1.png,a\n2.png,\n", "row 3 has no label"),
        ('path,label\n"1\n.png",a\n,b\n', "row 4 has no path"),
        ("path,label,split\n1.png,a,holdout\n", "row 2 has the split 'holdout'; use train, val or test"),
        ("path,label,split\n1.png,a,train\n2.png,a,\n", "1 rows have no split while others do"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_name_and_row(text: str, says: str, tmp_path: Path) -> None:
    path = table(tmp_path / "cells.csv", text)
    with pytest.raises(DataError) as error:
        open_source(path)
    assert first_line(error).startswith(f"{path}: ")
    assert says in first_line(error)


def test_a_csv_file_that_is_not_utf_8_and_a_broken_parquet_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_bytes("path,label\n1.png,Lymphozytenä\n".encode("latin-1"))
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "cells.csv")
    assert "not a CSV file in UTF-8" in first_line(error)
    (tmp_path / "cells.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "cells.parquet")
    assert "not a readable Parquet file" in first_line(error)


def test_what_is_no_data_set_is_refused_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "cells.xlsx").write_bytes(b"?")
    for path, says in [(tmp_path / "cells.xlsx", "not a data set"), (tmp_path / "no", "no such folder or file")]:
        with pytest.raises(DataError) as error:
            open_source(path)
        assert f"{path}: {says}" in first_line(error)


# --- MedMNIST archives -----------------------------------------------------------------------------------------------


def medmnist(path: Path, *, grey: bool = True, compressed: bool = False, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in {"train": 6, "val": 2, "test": 3}.items():
        shape = (count, 28, 28) if grey else (count, 28, 28, 3)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8).reshape(-1, 1) % 2
    arrays |= changes
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_medmnist_archive_is_read_with_its_splits_and_its_pixels(
    grey: bool, compressed: bool, tmp_path: Path
) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz", grey=grey, compressed=compressed)
    source = open_source(path)
    assert classes(source) == ("0", "1")
    assert [record.split for record in source.records] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert names(source)[6:8] == ["val_images[0]", "val_images[1]"]
    pictures = list(source.pictures())
    with np.load(path) as arrays:
        expected = [picture for split in ("train", "val", "test") for picture in arrays[f"{split}_images"]]
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(pictures, expected, strict=True))


def test_an_archive_with_several_labels_an_image_is_refused(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "chestmnist.npz", train_labels=np.zeros((6, 14), np.uint8))
    with pytest.raises(DataError) as error:
        open_source(path)
    assert f"{path}: several labels an image" in first_line(error)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "train_images is uint8 [6, 28, 28, 28]"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "train_images is float32"),
        ({"val_labels": np.zeros(5, np.uint8)}, "val_labels is uint8 [5], expected 2 whole numbers"),
        ({"val_labels": np.array(["a", "b"])}, "val_labels is <U1 [2]"),
        ({"val_labels": np.array([{}, {}], dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_an_archive_of_something_else_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = medmnist(tmp_path / "other.npz", **changes)
    with pytest.raises(DataError) as error:
        open_source(path)
    assert says in first_line(error)


def test_an_archive_without_images_and_a_file_that_is_no_archive_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "x.npz")
    assert "it needs train_images and train_labels" in first_line(error)
    (tmp_path / "y.npz").write_text(json.dumps({}))
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "y.npz")
    assert "not a whole MedMNIST archive" in first_line(error)


@pytest.mark.parametrize("compressed", [True, False])
def test_an_archive_with_damaged_pixels_is_refused_while_it_is_read(compressed: bool, tmp_path: Path) -> None:
    path = medmnist(tmp_path / "damaged.npz", compressed=compressed)
    content = bytearray(path.read_bytes())
    content[400:900] = b"\x55" * 500
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(open_source(path).pictures())
    assert f"{path}: not a whole MedMNIST archive" in first_line(error)
