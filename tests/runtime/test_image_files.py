"""Which files are taken for pictures."""

import os
from pathlib import Path

import pytest

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image_files import image_files


def lay_out(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_gives_its_pictures_and_those_of_its_folders_sorted(tmp_path: Path) -> None:
    lay_out(tmp_path, "b.jpg", "a.PNG", "notes.txt", "Thumbs.db", "deep/er/c.dcm", "aa/d.jpeg")
    found = [path.relative_to(tmp_path).as_posix() for path in image_files([tmp_path])]
    assert found == ["a.PNG", "aa/d.jpeg", "b.jpg", "deep/er/c.dcm"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.jpg", ".b.jpg", "._c.jpg", ".thumbnails/d.jpg")
    assert image_files([tmp_path]) == [tmp_path / "a.jpg"]


def test_a_file_without_ending_counts_if_it_is_dicom(tmp_path: Path) -> None:
    lay_out(tmp_path, "LICENSE", "empty")
    (tmp_path / "IM000001").write_bytes(bytes(128) + b"DICM" + bytes(10))
    os.mkfifo(tmp_path / "pipe")
    assert image_files([tmp_path]) == [tmp_path / "IM000001"]


def test_files_given_by_name_stay_in_order_whatever_they_are_called(tmp_path: Path) -> None:
    lay_out(tmp_path, "folder/b.png")
    given = [tmp_path / "z.txt", tmp_path / "folder", tmp_path / "missing.jpg"]
    assert image_files(given) == [tmp_path / "z.txt", tmp_path / "folder" / "b.png", tmp_path / "missing.jpg"]


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, "sub/notes.txt")
    with pytest.raises(ImageError, match=r": no images in this folder") as refused:
        image_files([tmp_path])
    assert (refused.value.source, refused.value.reason) == (str(tmp_path), ImageReason.NOT_FOUND)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(ImageError, match=r"closed: cannot be read \(Permission denied\)"):
        image_files([tmp_path])


def test_a_folder_that_the_system_refuses_to_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "a.png")

    def scandir(path: object) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match=r"cannot be read \(Permission denied\)"):
        image_files([tmp_path])
