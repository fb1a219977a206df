"""Pictures are decoded once, whole or not at all, in flat memory; a full disk is one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketdx_runtime import image
from pocketdx_train import cache as caching
from pocketdx_train.cache import decode_once, default_cache_folder, training_pixels
from pocketdx_train.errors import DataError
from pocketdx_train.sources import Source, open_source

Fill = Callable[..., Path]
Draw = Callable[..., NDArray[np.uint8]]
Save = Callable[[Path, NDArray[np.uint8]], Path]

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def source(filled: Fill, tmp_path: Path) -> Source:
    return open_source(filled(tmp_path / "data", {"disk": 3, "stripes": 3}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def decoded_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that were really decoded."""
    names: list[str] = []
    decode = image.decode

    def noting(picture: Any, **options: Any) -> NDArray[np.uint8]:
        names.append(options["name"])
        return decode(picture, **options)

    monkeypatch.setattr(image, "decode", noting)
    return names


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_pixels_are_those_of_the_training_time_preprocessing(source: Source, folder: Path) -> None:
    decoded = decode_once(source, 32, folder)
    assert decoded.pixels.shape == (6, 32, 32, 3)
    assert isinstance(decoded.pixels, np.memmap)
    for pixels, picture in zip(decoded.pixels, source.pictures(), strict=True):
        assert np.array_equal(pixels, training_pixels(picture, 32))


def test_a_second_call_decodes_nothing_and_gives_the_same(
    source: Source, folder: Path, decoded_files: list[str]
) -> None:
    first = decode_once(source, 32, folder)
    assert len(decoded_files) == 6
    second = decode_once(source, 32, folder)
    assert len(decoded_files) == 6
    assert np.array_equal(first.pixels, second.pixels)
    assert first.fingerprint() == second.fingerprint()


def test_a_changed_file_another_size_and_a_new_file_are_decoded(
    source: Source, folder: Path, drawn: Draw, saved: Save, decoded_files: list[str]
) -> None:
    before = decode_once(source, 32, folder)
    data = Path(source.name)
    saved(data / "disk" / "000.png", drawn("disk", 77))
    changed = decode_once(source, 32, folder)
    assert len(decoded_files) == 12
    assert not np.array_equal(before.pixels[0], changed.pixels[0])
    assert before.fingerprint() != changed.fingerprint()
    assert decode_once(source, 48, folder).pixels.shape == (6, 48, 48, 3)
    saved(data / "disk" / "new.png", drawn("disk", 78))
    assert len(decode_once(open_source(data), 32, folder).pixels) == 7


def test_a_label_or_patient_that_changes_costs_no_decoding(
    source: Source, folder: Path, tmp_path: Path, decoded_files: list[str]
) -> None:
    table = tmp_path / "table.csv"
    for labels in ("ab", "ba"):
        table.write_text(f"path,label\ndata/disk/000.png,{labels[0]}\ndata/stripes/000.png,{labels[1]}\n")
        decode_once(open_source(table), 32, folder)
    assert len(decoded_files) == 2


def test_the_fingerprint_is_that_of_names_labels_splits_and_pixels_not_of_where_the_data_is(
    filled: Fill, folder: Path, tmp_path: Path
) -> None:
    prints = {
        decode_once(open_source(filled(tmp_path / name, {"disk": 2, "stripes": 2})), size, folder).fingerprint()
        for name, size in [("one", 32), ("two", 40)]
    }
    assert len(prints) == 1


def test_unreadable_pictures_are_zeros_with_a_problem_by_name(source: Source, folder: Path) -> None:
    (Path(source.name) / "disk" / "001.png").write_bytes(b"?")
    decoded = decode_once(source, 32, folder)
    assert set(decoded.problems) == {1}
    assert decoded.problems[1].startswith("disk/001.png: ")
    assert not decoded.pixels[1].any()
    assert decoded.digests[1] == ""


def test_a_picture_that_was_missing_and_is_there_again_is_read(source: Source, folder: Path) -> None:
    path = Path(source.name) / "disk" / "001.png"
    content = path.read_bytes()
    path.unlink()
    assert set(decode_once(source, 32, folder).problems) == {1}
    path.write_bytes(content)
    assert not decode_once(source, 32, folder).problems


def test_a_picture_whose_decoder_was_installed_meanwhile_is_tried_again(
    source: Source, folder: Path, decoded_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "find_spec", lambda _: None)
    decode_once(source, 32, folder)
    monkeypatch.setattr(caching, "find_spec", lambda name: name)
    decode_once(source, 32, folder)
    assert len(decoded_files) == 12


def test_where_no_picture_can_be_read_the_first_says_why(source: Source, folder: Path) -> None:
    for path in source.pictures():
        assert isinstance(path, Path)
        path.write_bytes(b"?")
    with pytest.raises(DataError, match=r"none of its 6 images can be read; the first: disk/000\.png: "):
        decode_once(source, 32, folder)


# --- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_leaves_nothing(source: Source, folder: Path, kind: type[BaseException]) -> None:
    def interrupt(done: int, count: int) -> None:
        if done == 3:
            raise kind

    with pytest.raises(kind):
        decode_once(source, 32, folder, progress=interrupt)
    assert contents(folder) == []


def test_what_a_killed_build_left_is_swept_away_by_the_next(source: Source, folder: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from pocketdx_train.cache import decode_once
        from pocketdx_train.sources import open_source

        def die(done, count):
            os.kill(os.getpid(), signal.SIGKILL)

        decode_once(open_source(Path(sys.argv[1])), 32, Path(sys.argv[2]), progress=die)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, source.name, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = contents(folder)
    assert left.endswith(".part")
    decode_once(source, 48, folder)
    assert left not in contents(folder)
    assert len(contents(folder)) == 1


def test_a_build_in_progress_is_not_swept_away(source: Source, folder: Path) -> None:
    seen: list[list[str]] = []

    def build_another(done: int, count: int) -> None:
        if done == 3:
            decode_once(source, 48, folder)
            seen.append(contents(folder))

    decode_once(source, 32, folder, progress=build_another)
    assert any(name.endswith(".part") for name in seen[0])
    assert len(contents(folder)) == 2


def test_two_builders_of_the_same_entry_do_each_other_no_harm(source: Source, folder: Path) -> None:
    together = Barrier(2, timeout=60)

    def build() -> NDArray[np.uint8]:
        waited = False

        def wait(done: int, count: int) -> None:
            nonlocal waited
            if not waited:
                waited = True
                together.wait()

        return decode_once(source, 32, folder, progress=wait).pixels

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build(), range(2))
    assert np.array_equal(first, second)
    assert len(contents(folder)) == 1


@pytest.mark.parametrize("harm", ["truncated pixels", "damaged index", "other shape"])
def test_a_damaged_entry_is_built_anew(source: Source, folder: Path, harm: str, decoded_files: list[str]) -> None:
    whole = np.array(decode_once(source, 32, folder).pixels)
    (entry,) = folder.iterdir()
    if harm == "truncated pixels":
        os.truncate(entry / "pixels.npy", 1000)
    elif harm == "damaged index":
        (entry / "index.json").write_text("{")
    else:
        (entry / "index.json").write_text(json.dumps({"digests": ["x"], "problems": {}}))
    assert np.array_equal(decode_once(source, 32, folder).pixels, whole)
    assert len(decoded_files) == 12


# --- disks that are full or may not be written -----------------------------------------------------------------------


def test_too_little_room_is_said_before_anything_is_decoded(
    source: Source, folder: Path, decoded_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1000))
    with pytest.raises(DataError) as error:
        decode_once(source, 32, folder)
    assert f"{folder}: 0 MB are needed" in str(error.value)
    assert "--cache" in str(error.value)
    assert not decoded_files


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_is_one_line_and_leaves_nothing(
    source: Source, folder: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError) as error:
        decode_once(source, 32, folder)
    assert str(error.value) == (
        f"{folder}: decoded images cannot be kept here: {os.strerror(code)}; make room, or name another folder with "
        "--cache"
    )
    assert contents(folder) == []


def test_a_file_system_that_cannot_allocate_ahead_is_used_all_the_same(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert len(decode_once(source, 32, folder).pixels) == 6


def test_a_read_only_cache_serves_what_it_has_and_says_in_one_line_that_it_takes_no_more(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_once(source, 32, folder)
    mkdir = Path.mkdir

    def read_only(path: Path, *arguments: Any, **options: Any) -> None:
        if folder in path.parents:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert len(decode_once(source, 32, folder).pixels) == 6
    with pytest.raises(DataError) as error:
        decode_once(source, 48, folder)
    assert "Read-only file system; name another folder with --cache" in str(error.value)


def test_a_cache_that_is_a_file_is_one_line(source: Source, folder: Path) -> None:
    folder.write_text("in the way")
    with pytest.raises(DataError, match="name another folder with --cache"):
        decode_once(source, 32, folder)


def test_the_users_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETDX_CACHE", "/somewhere")
    assert default_cache_folder() == Path("/somewhere")
    monkeypatch.delenv("POCKETDX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/x/.caches")
    assert default_cache_folder() == Path("/home/x/.caches/pocketdx")


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_an_archive_larger_than_memory_may_be_streams_through(compressed: bool, tmp_path: Path) -> None:
    """Decoding 75 MB of pixels to 32 px pictures raises the peak by a small part of that."""
    count = 500
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    images = np.broadcast_to(pixels, (count, 224, 224, 3))
    labels = np.arange(count, dtype=np.uint8)[:, None] % 2
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", train_images=images, train_labels=labels)
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from pocketdx_train.cache import decode_once
        from pocketdx_train.sources import open_source

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        source, folder = open_source(Path(sys.argv[1])), Path(sys.argv[2])
        before = peak()
        decode_once(source, 32, folder)
        print(peak() - before)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.npz"), str(tmp_path / "kept")]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert count * pixels.nbytes / 2**20 > 70
    assert grown < 25  # MiB; the decoded set itself is 1.5
