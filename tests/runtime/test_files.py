"""Files and folders appear whole or not at all; what was there before survives every failure."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pocketdx_runtime import files
from pocketdx_runtime.files import OutputError, file_written_aside, folder_written_aside, write_atomically


def tree(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones and empty folders too, with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else "(folder)"
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def put(at: Path, text: str) -> None:
    """Fill whatever was given to fill: a folder, or the path of a file."""
    (at / "content" if at.is_dir() else at).write_text(text)


def fill(writing: AbstractContextManager[Path], text: str, then: Callable[[], object] = lambda: None) -> None:
    """Write in the way given, then do something before it is complete."""
    with writing as aside:
        put(aside, text)
        then()


def fail(error: BaseException) -> Callable[[], object]:
    def do() -> None:
        raise error

    return do


@pytest.fixture(params=["file", "folder"])
def written_aside(request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[Path]]:
    return file_written_aside if request.param == "file" else folder_written_aside


Writer = Callable[..., AbstractContextManager[Path]]


def content(path: Path) -> str:
    return (path / "content" if path.is_dir() else path).read_text()


def test_what_was_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", b"hello")
    assert tree(tmp_path) == {"a.bin": "hello"}


def test_it_appears_only_when_it_is_complete(tmp_path: Path, written_aside: Writer) -> None:
    target = tmp_path / "out"
    with written_aside(target) as aside:
        put(aside, "half")
        assert not target.exists()
        assert aside.parent == tmp_path  # a rename works only within a file system
    assert content(target) == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_parents_are_made(tmp_path: Path, written_aside: Writer) -> None:
    with written_aside(tmp_path / "x" / "y" / "out") as aside:
        put(aside, "whole")
    assert content(tmp_path / "x" / "y" / "out") == "whole"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_after_a_failure_nothing_is_left_behind(tmp_path: Path, written_aside: Writer, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fill(written_aside(tmp_path / "new" / "out"), "half", then=fail(error))
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_refused_before_anything_is_done(tmp_path: Path, written_aside: Writer) -> None:
    with written_aside(tmp_path / "out") as aside:
        put(aside, "old")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"out: exists already; .* --force"), written_aside(tmp_path / "out"):
        pytest.fail("the work began")
    assert tree(tmp_path) == before


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path, written_aside: Writer) -> None:
    def race() -> None:
        fill(written_aside(tmp_path / "out"), "theirs")

    with pytest.raises(OutputError, match="exists already"):
        fill(written_aside(tmp_path / "out"), "mine", then=race)
    assert content(tmp_path / "out") == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_overwriting_replaces_all_of_the_old(tmp_path: Path, written_aside: Writer) -> None:
    for text in ("old", "new"):
        with written_aside(tmp_path / "out", overwrite=True) as aside:
            put(aside, text)
            if aside.is_dir():
                (aside / f"only in {text}").touch()
    assert content(tmp_path / "out") == "new"
    assert not [path for path in tmp_path.rglob("*") if path.name == "only in old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_overwrite_leaves_the_old_as_it_was(tmp_path: Path, written_aside: Writer) -> None:
    with written_aside(tmp_path / "out") as aside:
        put(aside, "old")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="broken"):
        fill(written_aside(tmp_path / "out", overwrite=True), "new", then=fail(ValueError("broken")))
    assert tree(tmp_path) == before


def test_if_the_last_rename_fails_the_old_folder_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_written_aside(tmp_path / "out") as aside:
        put(aside, "old")
    before = tree(tmp_path)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(OutputError, match="out: cannot be written: Permission denied"),
        folder_written_aside(tmp_path / "out", overwrite=True) as aside,
    ):
        put(aside, "new")
    assert tree(tmp_path) == before


def test_a_full_disk_is_one_line_that_names_the_output(tmp_path: Path, written_aside: Writer) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"out: cannot be written: No space left on device; free some space"):
        fill(written_aside(tmp_path / "out"), "half", then=fail(full))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_really_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pocketdx_runtime.files import write_atomically, OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomically(sys.argv[1], bytes(5000))\n"
        "except OutputError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{tmp_path}/big.npz: cannot be written: File too large; choose another place\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, written_aside: Writer) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"), written_aside(tmp_path / "out"):
        pass


def test_a_parent_that_is_a_file_is_named(tmp_path: Path, written_aside: Writer) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"file/out: cannot be written: (Not a directory|File exists)"),
        written_aside(tmp_path / "file" / "out") as aside,
    ):
        put(aside, "x")
    assert tree(tmp_path) == {"file": ""}


def test_errors_about_other_files_pass_through(tmp_path: Path, written_aside: Writer) -> None:
    with pytest.raises(FileNotFoundError, match=r"input\.csv"), written_aside(tmp_path / "out"):
        (tmp_path / "input.csv").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_does_not_replace_a_file_nor_a_file_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="not a folder"), folder_written_aside(tmp_path / "file", overwrite=True):
        pass
    with pytest.raises(OutputError, match="a folder; give the name of a file"):
        write_atomically(tmp_path / "folder", b"x", overwrite=True)
    assert tree(tmp_path) == {"file": "keep", "folder": "(folder)"}


def test_force_never_deletes_a_folder_of_another_kind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(OutputError, match=r"home: not replaced, because there is no run\.json in it"),
        folder_written_aside(home, overwrite=True, marker="run.json"),
    ):
        pytest.fail("the work began")
    assert tree(tmp_path) == {"home/thesis.txt": "years of work"}


@pytest.mark.parametrize("old", [[], ["run.json", "weights"]])
def test_force_replaces_an_empty_folder_or_one_with_its_mark(tmp_path: Path, old: list[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in old:
        (run / name).write_text("old")
    with folder_written_aside(run, overwrite=True, marker="run.json") as aside:
        (aside / "run.json").write_text("new")
    assert tree(run) == {"run.json": "new"}


@pytest.mark.parametrize("name", [".", "..", "../here"])
def test_force_never_replaces_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine").write_text("keep")
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match="it is in use"), folder_written_aside(name, overwrite=True):
        pytest.fail("the work began")
    assert (here / "mine").read_text() == "keep"


def test_a_relative_path_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with file_written_aside("out.txt") as aside:
        aside.write_text("whole")
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "out.txt").read_text() == "whole"


def test_writers_see_the_suffix_they_expect(tmp_path: Path) -> None:
    with file_written_aside(tmp_path / "figure.png") as aside:
        assert aside.suffix == ".png"
        aside.touch()


def test_permissions_follow_the_umask(tmp_path: Path, written_aside: Writer) -> None:
    before = os.umask(0o027)
    try:
        with written_aside(tmp_path / "out") as aside:
            put(aside, "x")
    finally:
        os.umask(before)
    expected = 0o750 if (tmp_path / "out").is_dir() else 0o640
    assert (tmp_path / "out").stat().st_mode & 0o777 == expected


def test_without_hard_links_a_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hardlink_to(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    write_atomically(tmp_path / "a", b"whole")
    assert tree(tmp_path) == {"a": "whole"}
    with pytest.raises(OutputError, match="exists already"):
        fill(file_written_aside(tmp_path / "b"), "mine", then=lambda: (tmp_path / "b").write_text("theirs"))
    assert tree(tmp_path) == {"a": "whole", "b": "theirs"}


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path.name))
    with folder_written_aside(tmp_path / "out") as aside:
        put(aside, "x")
        name = aside.name
    assert synced == ["content", name, tmp_path.name]


def test_a_name_with_control_characters_is_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb"
    path.touch()
    with pytest.raises(OutputError, match=r"a\\nb: exists already") as refused:
        write_atomically(path, b"")
    assert "\n" not in str(refused.value)
