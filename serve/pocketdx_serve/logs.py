"""Structured logs: one JSON object a line for machines, one plain line on a terminal. Never content.

A record carries its data in ``extra={"fields": {...}}``. Of an exception only its type and the places it
passed are written, not its message: the message of a decoder may quote the picture.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any


def _places(record: logging.LogRecord) -> dict[str, Any]:
    if not record.exc_info or record.exc_info[0] is None:
        return {}
    frames = traceback.extract_tb(record.exc_info[2])
    return {
        "exception": record.exc_info[0].__name__,
        "at": [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
    }


class JsonFormatter(logging.Formatter):
    """``{"time": ISO 8601 UTC, "level": ..., "event": the message, ...fields}``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
            **_places(record),
        }
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainFormatter(logging.Formatter):
    """The same for people: the message, then ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One plain line."""
        fields = {**getattr(record, "fields", {}), **_places(record)}
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return " ".join([f"{level}{record.getMessage()}", *(f"{name}={value}" for name, value in fields.items())])


def configure() -> None:
    """Send the server's and uvicorn's records to stderr: plain on a terminal, JSON otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    for name, level in (("pocketdx.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
