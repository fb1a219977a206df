"""The program ``pocketdx``: finds the commands of all rooms, and turns errors into one line and an exit status.

Exit status: 0 done, 1 a gate failed, 2 bad usage or bad input, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cached_property
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pocketdx_runtime.errors import PocketDxError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_GROUP = "pocketdx.commands"
# In the order of the work; a command that is not listed comes last.
_ORDER = (
    "demo",
    "train",
    "evaluate",
    "export",
    "parity",
    "predict",
    "embed",
    "serve",
    "inspect",
    "selftest",
    "devices",
)


class MissingPackageError(PocketDxError):
    """A command needs a package that is not installed."""


class Commands(click.Group):
    """Commands are entry points of the distribution; a room is imported when one of its commands is needed."""

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        try:
            entries = distribution("pocketdx").entry_points.select(group=_GROUP)
        except PackageNotFoundError:
            raise MissingPackageError("pocketdx is not installed; install it with: pip install .") from None
        return {entry.name: entry for entry in entries}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the work."""
        names = sorted(self._entries)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. One that cannot be imported says so when it is called, and only then."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = entry.load()
        except Exception as error:  # a broken room must not take the others down
            return _broken_command(entry, error)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong outside of PocketDx's own errors is translated here."""
        try:
            return super().invoke(ctx)
        except ImportError as error:
            entry = self._entries.get(ctx.invoked_subcommand or "")
            if entry is None:
                raise
            raise _missing(entry, error) from error
        except BrokenPipeError:
            _mute_stdout()
            raise click.exceptions.Exit(141) from None
        except EOFError as error:
            # click takes it for the end of input at a prompt and would exit as if interrupted.
            raise RuntimeError(f"unexpected end of a file: {error}") from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 a gate failed, 2 bad usage or bad input. More: pocketdx COMMAND --help",
)
@click.version_option(package_name="pocketdx", prog_name="pocketdx", message="%(prog)s %(version)s")
def cli() -> None:
    """From a folder of labelled medical images to a diagnosis model on a phone, with proof.

    Research use only. Not a medical device.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit.

    Args:
        arguments: of the command line, without the program's name; default: ``sys.argv``.
    """
    # For PyTorch's threads, unless the user has chosen: between two steps they sleep. If they spin, as is the
    # default, training beside any other busy process took five times the CPU time (two cores, V3-small at 96 px).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # For NumPy's: 2 ** 20 cycles instead of 2 ** 26 before they sleep. Else `predict` burnt a quarter more CPU time.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; nothing a user can cause escapes as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(args=arguments, prog_name="pocketdx", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except PocketDxError as error:
        return _fail(str(error))
    except BrokenPipeError:
        _mute_stdout()
        return 141
    except OSError as error:
        if error.filename is None:
            _mute_stdout()  # it may be what failed, and would fail again when Python exits
        return _fail(_describe(error))
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return 2


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += "; free some space, or choose another place"
    return printable(f"{error.filename}: {reason}" if error.filename is not None else reason)


def _mute_stdout() -> None:
    """Send what is still in the buffer nowhere, or Python complains when it exits (docs: library/signal)."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file, as in tests
        return


def _broken_command(entry: EntryPoint, error: Exception) -> click.Command:
    """Stand in for a command that cannot be imported."""

    @click.pass_context
    def complain(_: click.Context) -> None:
        raise _missing(entry, error) if isinstance(error, ImportError) else error

    return click.Command(
        entry.name,
        callback=complain,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
        short_help="(not available in this installation; call it to see why)",
    )


def _missing(entry: EntryPoint, error: ImportError) -> MissingPackageError:
    from pocketdx_runtime.extras import install_command

    room = entry.module.partition(".")[0].removeprefix("pocketdx_")
    module = error.name or "a package"
    if module.startswith("pocketdx_"):
        return MissingPackageError(
            f"this installation of PocketDx has no {module}, which `pocketdx {entry.name}` needs; "
            "repair it with: pip install --force-reinstall --no-deps pocketdx"
        )
    install = install_command(module, room)
    if isinstance(error, ModuleNotFoundError):
        return MissingPackageError(f"`pocketdx {entry.name}` needs {module}: {install}")
    reason = printable(str(error))
    return MissingPackageError(f"`pocketdx {entry.name}` cannot load {module} ({reason}): {install}")
