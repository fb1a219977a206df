"""Run the programs that set a device up; what goes wrong becomes one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketdx_export.devices.errors import DeviceError
from pocketdx_runtime.errors import printable

_LONGEST = 600.0


def call(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    remedy: str,
    seconds: float = _LONGEST,
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        command: the program and its arguments.
        cwd: folder to run it in.
        environment: variables added to this process's.
        remedy: what to do when it fails, for the message.
        seconds: after which it is ended.

    Raises:
        DeviceError: it is not installed, fails, or takes too long; with its last words.
    """
    words = [str(each) for each in command]
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except FileNotFoundError:
        raise DeviceError(f"{name} is not installed; {remedy}") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{name} took more than {seconds:.0f} s; {remedy}") from None
    if done.returncode != 0:
        how = ended(done.returncode)
        raise DeviceError(f"{name} {how} ({last_words(done.stderr or done.stdout)}); {remedy}")
    return done.stdout


def ended(status: int) -> str:
    """How a process ended, in words, from its return code as `subprocess` gives it."""
    return f"failed with status {status}" if status >= 0 else f"was ended by signal {-status}"


def last_words(text: str) -> str:
    """The line of a program's messages that says what went wrong, as far as one can tell; at most 300 characters."""
    lines = [printable(line.strip()) for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E:", "ERROR", "npm error"))]
    return (telling[0] if telling else lines[-1] if lines else "it said nothing")[:300]
