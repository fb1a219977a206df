"""The audit log: who asked, when, which model file, what it said, and a keyed hash of the image. Nothing else.

One JSON object a line. Each line's ``mac`` is an HMAC over the line and the ``mac`` before it, so a line that was
changed, removed, added or moved breaks the chain for whoever does not have the key. What a chain alone cannot
show is a missing end: beside the log lies ``FILE.head``, sealed with the key, with the number and mac of the last
line; and ``pocketdx audit verify`` prints both, to be kept elsewhere and given back with ``--expect``.

A line is written, by one ``write`` in append mode, before its answer is sent; no line, no answer (503). The
system's cache is flushed to the disk once a second: a crash of the server loses nothing, a power cut the last
second. A half line that a power cut leaves was never answered, and is cut off at the next start.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import logging
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pocketdx_runtime.errors import printable
from pocketdx_serve.errors import AuditError, ServeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

KEY_ENVIRONMENT: Final = "POCKETDX_AUDIT_KEY"
SHORTEST: Final = 32
FIRST: Final = "0" * 64
"""What stands for the mac before the first line."""
_MAX_LINE: Final = 4096
_HEAD_SIZE: Final = 256

log = logging.getLogger("pocketdx.serve")


class AuditKey:
    """The secret of a log; a key of its own for each of its three uses.

    Raises:
        ServeError: shorter than 32 characters.
    """

    def __init__(self, secret: str) -> None:
        if len(secret.strip()) < SHORTEST:
            raise ServeError(
                f"the audit key has fewer than {SHORTEST} characters; make one with `openssl rand -hex 32`, and give "
                f"it with --audit-key FILE or {KEY_ENVIRONMENT}"
            )
        master = secret.strip().encode()
        self._chain, self._image, self._head = (
            hmac.digest(master, b"pocketdx audit " + use, "sha256") for use in (b"chain", b"image", b"head")
        )

    @classmethod
    def chosen(cls, path: Path | None) -> AuditKey:
        """The key in a file, or in the environment. Raises as the class, and where the file cannot be read."""
        if path is None:
            return cls(os.environ.get(KEY_ENVIRONMENT, ""))
        try:
            return cls(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not text"
            raise ServeError(f"{printable(str(path))}: the audit key cannot be read: {why}") from None

    def image(self, data: bytes) -> str:
        """Keyed hash of an image: tells whether it is this one to who has both key and image, to nobody else."""
        return hmac.digest(self._image, data, "sha256").hex()

    def mac(self, before: str, entry: dict[str, Any]) -> str:
        """Of an entry without its mac, after the line whose mac is ``before``."""
        return hmac.digest(self._chain, before.encode() + _plain(entry), "sha256").hex()

    def seal(self, number: int, mac: str) -> str:
        """Of the head."""
        return hmac.digest(self._head, f"{number}:{mac}".encode(), "sha256").hex()


def _plain(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode()


class AuditLog:
    """A log open for appending. Safe to call from many threads; one process at a time may have it open.

    Args:
        path: of the log; made if missing, readable by its owner alone.
        key: its secret.

    Raises:
        ServeError: it cannot be opened, another server has it, or its end was not written with this key.
    """

    def __init__(self, path: Path, key: AuditKey) -> None:
        self.path = path
        self.key = key
        self._lock = threading.Lock()
        self._dirty = False
        self._file = self._head = -1
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._head = os.open(head_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._resume()
        except BlockingIOError:
            self.close()
            raise ServeError(
                f"{printable(str(path))}: another server writes this audit log; give each its own"
            ) from None
        except OSError as error:
            self.close()
            raise ServeError(f"{printable(str(path))}: the audit log cannot be opened: {error.strerror}") from None
        except ServeError:
            self.close()
            raise

    def _resume(self) -> None:
        """Find the end of the chain. Only the end is checked; the whole is for ``pocketdx audit verify``."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, 2 * _MAX_LINE, max(0, size - 2 * _MAX_LINE))
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            log.warning(
                "audit log: cut off a half line at its end", extra={"fields": {"bytes": len(tail) - len(whole)}}
            )
            size -= len(tail) - len(whole)
            os.ftruncate(self._file, size)
        shown = printable(str(self.path))
        broken = f"{shown}: its end is not of this key or was changed; see `pocketdx audit verify`, or name another"
        lines = whole.splitlines()
        self._number, self._mac, self._size = 0, FIRST, size
        try:
            if lines:
                before = json.loads(lines[-2])["mac"] if len(lines) > 1 else FIRST
                entry = json.loads(lines[-1])
                self._mac = entry.pop("mac")
                self._number = entry["n"]
                if not hmac.compare_digest(self.key.mac(before, entry), self._mac):
                    raise ServeError(broken)
            number, _ = read_head(self.path, self.key)
        except (ValueError, KeyError, TypeError):
            raise ServeError(broken) from None
        if number > self._number:
            raise ServeError(
                f"{shown}: lines are missing at its end ({number} were written); see `pocketdx audit verify`"
            )
        self._write_head()

    def record(self, who: str, model: str, verdict: str | None, image: bytes) -> None:
        """Append one line.

        Args:
            who: name of the key.
            model: SHA-256 of the model file.
            verdict: the label, None where the model was not asked for one.
            image: its bytes as sent.

        Raises:
            AuditError: it could not be written; the log is as before.
        """
        hashed = self.key.image(image)
        with self._lock:
            entry: dict[str, Any] = {
                "n": self._number + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "who": who,
                "model": model,
                "verdict": verdict,
                "image": hashed,
            }
            mac = self.key.mac(self._mac, entry)
            line = _plain({**entry, "mac": mac}) + b"\n"
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    raise OSError(28, "no space left for a whole line")
            except OSError as error:
                self._undo()
                raise AuditError(f"{printable(str(self.path))}: cannot be written: {error.strerror}") from None
            self._number, self._mac, self._size, self._dirty = entry["n"], mac, self._size + len(line), True
            self._write_head()

    def _undo(self) -> None:
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            log.exception("audit log: a half line could not be taken back")

    def _write_head(self) -> None:
        head = _plain({"n": self._number, "mac": self._mac, "seal": self.key.seal(self._number, self._mac)})
        try:
            os.pwrite(self._head, head.ljust(_HEAD_SIZE - 1) + b"\n", 0)
        except OSError as error:  # the line is there: an older head is no contradiction
            log.error("audit log: its head cannot be written: %s", error.strerror)

    def sync(self) -> None:
        """Flush what was written since the last time to the disk."""
        if self._dirty:
            self._dirty = False
            os.fdatasync(self._file)
            os.fdatasync(self._head)

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        with self._lock:
            for each in (self._file, self._head):
                if each >= 0:
                    os.fsync(each)
                    os.close(each)
            self._file = self._head = -1


def head_of(path: Path) -> Path:
    """Where the head of a log lies."""
    return path.with_name(path.name + ".head")


def read_head(path: Path, key: AuditKey) -> tuple[int, str]:
    """Number and mac of the last line, of the head beside a log; 0 and `FIRST` for one that is empty or missing.

    Raises:
        ValueError: it was not sealed with this key.
    """
    try:
        text = head_of(path).read_text().strip("\0 \n")
    except FileNotFoundError:
        text = ""
    if not text:
        return 0, FIRST
    head = json.loads(text)
    if not hmac.compare_digest(key.seal(head["n"], head["mac"]), head["seal"]):
        raise ValueError("the head is not of this key")
    return head["n"], head["mac"]


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome; true when nothing is wrong.

    Attributes:
        lines: whole and right, counted from the first.
        mac: of the last of them.
        problem: what is wrong, with the line; None if nothing is.
    """

    lines: int
    mac: str
    problem: str | None

    def __bool__(self) -> bool:
        return self.problem is None


def verify(path: Path, key: AuditKey, expected: tuple[int, str] | None = None) -> Verification:
    """Check a whole log, also one that a server is writing.

    Args:
        path: of the log.
        key: its secret.
        expected: number and mac of a line, as an earlier verification gave them: the log must still have it.

    Raises:
        ServeError: the log cannot be read.
    """
    try:
        head = read_head(path, key)
    except (ValueError, KeyError, TypeError):
        return Verification(0, FIRST, f"{head_of(path).name} was changed, or is of another key")
    try:
        with path.open("rb") as file:
            outcome = _verify_lines(file, key, [each for each in (head, expected) if each and each[0]])
    except OSError as error:
        raise ServeError(f"{printable(str(path))}: cannot be read: {error.strerror}") from None
    if outcome and head == (0, FIRST) and outcome.lines:
        return Verification(
            outcome.lines, outcome.mac, f"{head_of(path).name} is missing: lines may be missing at the end"
        )
    return outcome


def _verify_lines(file: BinaryIO, key: AuditKey, known: list[tuple[int, str]]) -> Verification:
    number, before = 0, FIRST
    for line in _lines(file):
        try:
            entry = json.loads(line)
            mac = entry.pop("mac")
            right = hmac.compare_digest(key.mac(before, entry), mac) and entry["n"] == number + 1
            right = right and line == _plain({**entry, "mac": mac}) + b"\n"
        except (ValueError, KeyError, TypeError, AttributeError):
            right = False
        if not right:
            what = "is not whole" if not line.endswith(b"\n") else "was changed, or one before it is missing"
            return Verification(number, before, f"line {number + 1} {what}")
        number, before = number + 1, mac
        for at, expected in known:
            if at == number and mac != expected:
                return Verification(number, before, f"line {number} is not the one that was there")
    missing = max([at for at, _ in known], default=0)
    if missing > number:
        return Verification(number, before, f"lines are missing at the end: there were at least {missing}")
    return Verification(number, before, None)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE):
        yield line
