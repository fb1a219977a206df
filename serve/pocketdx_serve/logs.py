"""Structured logs: one JSON object a line for machines, one plain line on a terminal. Never content.

A record carries its data in ``extra={"fields": {...}}``. Of an exception only its type and the places it
passed are written, not its message: the message of a decoder may quote the picture.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Final

REQUEST: Final = "request"
"""The event of a request's line."""
BATCH_SECONDS: Final = 0.2
BATCH_LINES: Final = 10_000


_as_json: Final = json.JSONEncoder(ensure_ascii=False, default=str).encode


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
        return _as_json(line)


class PlainFormatter(logging.Formatter):
    """The same for people: the message, then ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One plain line."""
        fields = {**getattr(record, "fields", {}), **_places(record)}
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return " ".join([f"{level}{record.getMessage()}", *(f"{name}={value}" for name, value in fields.items())])


class Unhurried(logging.StreamHandler[Any]):
    """A handler that writes the lines of requests in batches, a few times a second, from a thread of its own.

    To make a record of each and to write it at once would cost the event loop time and a system call, and a reader that
    has stopped would stop it. Every other line is written at once, with what waits before it; so is what waits when the
    process ends. A kill loses at most the lines of the last `BATCH_SECONDS`. With more than `BATCH_LINES` waiting, new
    ones are counted and dropped.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        # Whose ends are safe to use from two threads. Of a request the time and the fields.
        self._batch: deque[logging.LogRecord | tuple[float, dict[str, Any]]] = deque()
        self._dropped = 0
        self._pen = threading.Lock()
        threading.Thread(target=self._write_on, name="pocketdx-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, behind those that wait."""
        self._keep(record)
        self.flush()

    def request(self, fields: dict[str, Any]) -> None:
        """Keep the line of a request for later."""
        self._keep((time.time(), fields))

    def _keep(self, line: logging.LogRecord | tuple[float, dict[str, Any]]) -> None:
        if len(self._batch) < BATCH_LINES:
            self._batch.append(line)
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Write what waits."""
        with self._pen:
            batch = [_record(self._batch.popleft()) for _ in range(len(self._batch))]
            dropped, self._dropped = self._dropped, 0
            if dropped:
                batch.append(logging.makeLogRecord({"msg": "log lines dropped", "fields": {"lines": dropped}}))
            if batch:
                with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop serving
                    self.stream.write("".join([f"{self.format(record)}\n" for record in batch]))
                    self.stream.flush()

    def _write_on(self) -> None:
        while True:
            time.sleep(BATCH_SECONDS)
            self.flush()


def _record(line: logging.LogRecord | tuple[float, dict[str, Any]]) -> logging.LogRecord:
    if isinstance(line, logging.LogRecord):
        return line
    created, fields = line
    known = {"msg": REQUEST, "levelno": logging.INFO, "levelname": "INFO", "created": created, "fields": fields}
    return logging.makeLogRecord(known)


def log_request(log: logging.Logger, fields: dict[str, Any]) -> None:
    """Log one request, unhurriedly where `configure` has been called and nobody else listens."""
    if not log.isEnabledFor(logging.INFO):
        return
    match log.handlers:
        case [Unhurried() as handler]:
            handler.request(fields)
        case _:
            log.info(REQUEST, extra={"fields": fields})


def configure() -> None:
    """Send the server's and uvicorn's records to stderr: plain on a terminal, JSON otherwise."""
    # "Optimization" in the logging HOWTO: nobody asks for caller, thread and process of a record, and to find them out
    # takes a quarter of what it costs a request to be logged.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = Unhurried(sys.stderr)
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    for name, level in (("pocketdx.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
