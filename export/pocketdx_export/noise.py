"""Keep what other people's converters print away from the terminal, and from the JSON on stdout."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from pocketdx_runtime.errors import printable


def first_line(problem: Exception) -> str:
    """What an error of somebody else's says, in one line."""
    lines = str(problem).strip().splitlines()
    return printable(lines[0])[:300] if lines else type(problem).__name__


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing written to stdout or stderr gets out, by Python or by a C++ library; errors are raised as ever.

    For the whole process: other threads are silent too as long as it lasts.
    """
    disabled = logging.root.manager.disable
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # what was said before is heard
            stream.flush()
    logging.disable(logging.WARNING)
    # Python's streams as well as the descriptors below them: in a notebook or a test the two are not the same.
    python = io.StringIO()
    with (
        tempfile.TemporaryFile() as away,
        warnings.catch_warnings(),
        redirect_stdout(python),
        redirect_stderr(python),
    ):
        warnings.simplefilter("ignore")
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(away.fileno(), number)
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
            logging.disable(disabled)
