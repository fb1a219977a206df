"""The program itself: finding commands, one line for every error, the right exit status."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import click
import pytest

from pocketdx_runtime import cli
from pocketdx_runtime.errors import ImageError, ImageReason, PocketDxError

Cli = Callable[..., Any]


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Add an entry point of the given name and value."""
    entries = dict(cli.cli._entries)
    monkeypatch.setitem(cli.cli.__dict__, "_entries", entries)

    def add(name: str, value: str) -> None:
        entries[name] = EntryPoint(name, value, "pocketdx.commands")

    return add


@pytest.fixture
def command_that(
    add_command: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], object]], None]:
    """Make ``pocketdx probe`` do something."""

    def make(action: Callable[[], object]) -> None:
        @click.command()
        def probe() -> object:
            return action()

        monkeypatch.setattr(cli, "probe", probe, raising=False)
        add_command("probe", "pocketdx_runtime.cli:probe")

    return make


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


def test_help_lists_every_command_in_the_order_of_the_work(pocketdx: Cli) -> None:
    status, out, err = pocketdx("--help")
    assert (status, err) == (0, "")
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines() if line.startswith("  ")]
    expected = ["demo", "train", "evaluate", "export", "parity", "predict", "embed", "serve", "inspect", "selftest"]
    assert [name for name in listed if name in expected] == expected
    assert "Not a medical device" in out


def test_version_is_that_of_the_distribution(pocketdx: Cli) -> None:
    assert pocketdx("--version") == (0, f"pocketdx {version('pocketdx')}\n", "")


@pytest.mark.parametrize("command", ["predict", "embed", "inspect", "selftest"])
def test_every_command_explains_itself_with_an_example(pocketdx: Cli, command: str) -> None:
    status, out, _ = pocketdx(command, "--help")
    assert status == 0
    assert f"  pocketdx {command} " in out.partition("Example")[2]


@pytest.mark.parametrize("arguments", [["frobnicate"], ["predict"], ["predict", "--frobnicate"], ["--frobnicate"]])
def test_bad_usage_is_status_2_and_leaves_stdout_empty(pocketdx: Cli, arguments: list[str]) -> None:
    status, out, err = pocketdx(*arguments)
    assert (status, out) == (2, "")
    assert "Error: " in err


def test_without_arguments_help_is_shown_as_bad_usage(pocketdx: Cli) -> None:
    status, out, err = pocketdx()
    assert status == 2
    assert "Commands:" in out + err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PocketDxError("run: broken; mend it"), "error: run: broken; mend it\n"),
        (ImageError("a.png", ImageReason.EMPTY, "empty file"), "error: a.png: empty file\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/weights"),
            "error: /x/weights: Permission denied\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/run"),
            "error: /x/run: No space left on device; free some space, or choose another place\n",
        ),
        (OSError("12 requested and 0 written"), "error: 12 requested and 0 written\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\nb"), "error: a\\nb: No such file\n"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    pocketdx: Cli, command_that: Callable[..., None], error: Exception, line: str
) -> None:
    command_that(raising(error))
    assert pocketdx("probe") == (2, "", line)


def test_a_bug_is_still_a_traceback(pocketdx: Cli, command_that: Callable[..., None]) -> None:
    command_that(raising(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        pocketdx("probe")


def test_an_unexpected_end_of_file_is_not_taken_for_an_interruption(
    pocketdx: Cli, command_that: Callable[..., None]
) -> None:
    command_that(raising(EOFError("ran out")))
    with pytest.raises(RuntimeError, match="ran out"):
        pocketdx("probe")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_status_130_without_a_word(
    pocketdx: Cli, command_that: Callable[..., None], error: BaseException
) -> None:
    command_that(raising(error))
    status, out, err = pocketdx("probe")
    assert (status, out, err.strip()) == (130, "", "")


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_a_command_returns_its_exit_status(
    pocketdx: Cli, command_that: Callable[..., None], result: object, status: int
) -> None:
    command_that(lambda: result)
    assert pocketdx("probe").status == status


def test_a_command_may_exit_with_a_status(pocketdx: Cli, command_that: Callable[..., None]) -> None:
    command_that(lambda: click.get_current_context().exit(1))
    assert pocketdx("probe").status == 1


# --- what is not installed -------------------------------------------------------------------------------------


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    written: list[str] = []
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_a_missing_package_is_one_line_with_the_command_that_brings_it(
    pocketdx: Cli, add_command: Callable[..., None], write_module: Callable[..., None]
) -> None:
    text = """
import click
@click.command()
def probe():
    "Needs something."
    import fastapi.a_part_that_does_not_exist
"""
    write_module("pocketdx_lazy", text)
    add_command("probe", "pocketdx_lazy:probe")
    assert "Needs something." in pocketdx("--help").out
    expected = "error: `pocketdx probe` needs fastapi.a_part_that_does_not_exist: pip install 'pocketdx[serve]'\n"
    assert pocketdx("probe") == (2, "", expected)


def test_a_command_that_cannot_be_imported_is_reported_only_when_it_is_called(
    pocketdx: Cli, add_command: Callable[..., None], write_module: Callable[..., None]
) -> None:
    write_module("pocketdx_broken", "import a_package_that_nobody_has\n")
    add_command("probe", "pocketdx_broken:probe")
    status, out, err = pocketdx("--help")
    assert (status, err) == (0, "")
    assert "probe" in out
    for arguments in ([], ["--help"], ["x", "--y", "z"]):
        status, out, err = pocketdx("probe", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: `pocketdx probe` needs a_package_that_nobody_has: pip install ")


def test_a_room_that_is_missing_altogether_asks_to_repair_the_installation(
    pocketdx: Cli, add_command: Callable[..., None]
) -> None:
    add_command("probe", "pocketdx_nowhere.commands:probe")
    status, _, err = pocketdx("probe")
    assert status == 2
    assert err.startswith("error: this installation of PocketDx has no pocketdx_nowhere, ")
    assert err.count("\n") == 1


def test_a_package_that_is_there_but_does_not_load_says_why(pocketdx: Cli, command_that: Callable[..., None]) -> None:
    command_that(raising(ImportError("libgomp.so.1: cannot open\nshared object file", name="torch")))
    status, _, err = pocketdx("probe")
    assert status == 2
    assert err.startswith("error: `pocketdx probe` cannot load torch (libgomp.so.1: cannot open\\nshared object")
    assert err.count("\n") == 1


# --- as a process ----------------------------------------------------------------------------------------------

MANY_LINES = """
import sys
import click
from pocketdx_runtime import cli
@click.command()
def many():
    for number in range(100_000):
        click.echo(f"line {number}")
cli.cli.add_command(many)
class Own(type(cli.cli)):
    pass
real = type(cli.cli).get_command
type(cli.cli).get_command = lambda self, ctx, name: many if name == "many" else real(self, ctx, name)
cli.main(["many"])
"""


WAITING = """
import atexit, os, sys
from pocketdx_runtime import cli
names = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
loaded = "numpy" in sys.modules
atexit.register(lambda: print(*(os.environ[name] for name in names), loaded))
cli.main(["--version"])
"""


@pytest.mark.parametrize(
    ("chosen", "found"),
    [({}, "PASSIVE 20"), ({"OMP_WAIT_POLICY": "ACTIVE", "OPENBLAS_THREAD_TIMEOUT": "26"}, "ACTIVE 26")],
)
def test_threads_that_wait_sleep_unless_the_user_has_chosen(chosen: dict[str, str], found: str) -> None:
    """It is set before NumPy is there, which reads it once."""
    names = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
    others = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, env={**others, **chosen})
    assert done.stdout.splitlines()[-1] == f"{found} False"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", MANY_LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pocketdx_runtime", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.stderr == "error: No space left on device; free some space, or choose another place\n"
    assert done.returncode == 2


def test_ctrl_c_is_status_130_and_no_traceback() -> None:
    code = MANY_LINES.replace("for number in range(100_000):", "for number in iter(int, 1):")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"line 0\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == b""


def test_names_that_the_terminal_cannot_show_do_not_crash_it(tmp_path: Path, model_path: Path) -> None:
    name = os.fsdecode(b"gr\xc3\xb6\xdfe.png")  # one valid and one invalid UTF-8 letter
    command = [sys.executable, "-m", "pocketdx_runtime", "predict", str(model_path), str(tmp_path / name)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"no such file" in done.stderr
    assert done.stderr.count(b"\n") == 1
