"""Write files and folders that appear whole or not at all.

Everything is written aside, in the folder of the target (a rename works only within a file system), synced,
then renamed. Whatever goes wrong, the leftovers are removed and what was there before is still there.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pocketdx_runtime.errors import PocketDxError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL = {errno.ENOSPC, errno.EDQUOT}
_WRITE_FAILED = _FULL | {errno.EFBIG, errno.EIO}  # these come from write() and name no file


class OutputError(PocketDxError):
    """Something cannot be written: it exists already, the disk is full, the folder may not be written to."""


def write_atomically(path: str | Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file; missing parent folders are made.
        data: its content.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
    """
    with file_written_aside(path, overwrite=overwrite) as aside:
        aside.write_bytes(data)


@contextmanager
def file_written_aside(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give the body a path to write a file to; it becomes ``path`` when the body ends without error.

    The path given has the same suffix as ``path``, for writers that look at it.

    Raises:
        OutputError: as `write_atomically`; a body's own errors pass through, a full disk as OutputError.
    """
    target = _target(path, overwrite)
    if target.is_dir():
        raise OutputError(f"{_shown(path)}: a folder; give the name of a file")
    with _aside(target, _shown(path)) as aside:
        yield aside
        _sync(aside)
        if overwrite:
            aside.replace(target)
        else:
            _rename_file_to_free_name(aside, target)
        _sync(target.parent)


@contextmanager
def folder_written_aside(path: str | Path, *, overwrite: bool = False, marker: str | None = None) -> Iterator[Path]:
    """Give the body an empty folder to fill; it becomes ``path`` when the body ends without error.

    With ``overwrite`` an existing folder is replaced only then, and as a whole: files of the old one go.

    Args:
        path: the folder; missing parent folders are made.
        overwrite: replace an existing folder.
        marker: name of a file that every such folder holds. An existing folder that is not empty and does not
            hold it is something else (somebody's home, say) and is never replaced.

    Raises:
        OutputError: ``path`` exists and may not be replaced, or it cannot be written; a body's own errors
            pass through, a full disk as OutputError.
    """
    target = _target(path, overwrite)
    _check_replaceable(target, marker)
    with _aside(target, _shown(path)) as aside:
        aside.mkdir()
        yield aside
        for each in aside.rglob("*"):
            _sync(each)
        _sync(aside)
        if os.path.lexists(target):
            check_free(target, overwrite=overwrite)
            _swap_folder(aside, target)
        else:
            aside.rename(target)
        _sync(target.parent)


def check_free(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output that exists already, before hours are spent on it.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is false.
    """
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{_shown(path)}: exists already; choose another name, or --force to replace it")


def _target(path: str | Path, overwrite: bool) -> Path:
    """Absolute path: the body may change the folder it runs in, and "." and ".." get a name."""
    check_free(path, overwrite=overwrite)
    target = Path(path).absolute()
    return target if target.name not in ("", "..") else target.resolve()


def _check_replaceable(folder: Path, marker: str | None) -> None:
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise OutputError(f"{_shown(folder)}: not a folder; choose another name")
    foreign = marker is not None and not (folder / marker).exists() and any(folder.iterdir())
    if foreign or Path.cwd().is_relative_to(folder.resolve()):
        why = f"there is no {marker} in it" if foreign else "it is in use"
        raise OutputError(f"{_shown(folder)}: not replaced, because {why}; choose another name")


def _shown(path: str | Path) -> str:
    return printable(str(path))


@contextmanager
def _aside(path: Path, shown: str) -> Iterator[Path]:
    """A free path beside ``path``. What lies there in the end is removed, and parents made in vain."""
    made = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
    aside = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")
    done = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        done = True
    except OSError as error:
        if error.errno in _WRITE_FAILED or error.filename in (str(aside), str(path), str(path.parent)):
            raise OutputError(f"{shown}: cannot be written: {_explain(error)}") from error
        raise
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with suppress(OSError):  # never there
                aside.unlink()
        if not done:
            for each in made:
                with suppress(OSError):  # not empty: somebody else has use for it
                    each.rmdir()


def _explain(error: OSError) -> str:
    reason = error.strerror or str(error)
    remedy = "free some space, or choose another place" if error.errno in _FULL else "choose another place"
    return f"{reason}; {remedy}"


def _rename_file_to_free_name(aside: Path, path: Path) -> None:
    """Rename a file, never onto another, not even one that appeared meanwhile, where the file system can."""
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        check_free(path)
        raise
    except OSError:  # no hard links here
        check_free(path)
        aside.rename(path)


def _swap_folder(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``; if that fails, put the old one back."""
    old = path.with_name(f"{new.name}.old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Make the system write out a file or folder, so that a power cut after the rename loses nothing."""
    if path.is_symlink() or not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
