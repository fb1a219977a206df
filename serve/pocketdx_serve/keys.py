"""API keys: who may ask. Kept as keyed hashes, compared in constant time, read again when their file changes.

A file has one key a line, with or without a name before it (``ward-7 9f86d081884c7d65...``); lines that begin
with ``#`` are comments. The environment variable POCKETDX_API_KEYS has the same, separated by commas.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pocketdx_runtime.errors import printable
from pocketdx_serve.errors import ServeError
from pocketdx_serve.problems import Problem

if TYPE_CHECKING:
    from starlette.datastructures import Headers

ENVIRONMENT: Final = "POCKETDX_API_KEYS"
SHORTEST: Final = 16
MAX_FILE: Final = 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")


class KeyRing:
    """The keys that are let in.

    Args:
        path: of a file of keys; read now and by `reload`.
        text: keys as the environment has them; used where there is no file.

    Raises:
        ServeError: the file cannot be read, has no key, a short one, a bad line, or a name or key twice.
    """

    def __init__(self, path: Path | None = None, text: str = "") -> None:
        self.path = path
        self._salt = secrets.token_bytes(32)
        self._hashes: dict[str, bytes] = {}
        if path is not None:
            self.reload()
        else:
            self._hashes = self._hashed([line.strip() for line in text.split(",")], ENVIRONMENT)

    @classmethod
    def chosen(cls, path: Path | None) -> KeyRing | None:
        """The keys of a file, else of the environment; None where neither has any: everybody is let in."""
        if path is not None:
            return cls(path)
        text = os.environ.get(ENVIRONMENT, "")
        return cls(text=text) if text.strip() else None

    def __len__(self) -> int:
        return len(self._hashes)

    def reload(self) -> None:
        """Read the file again; whatever is wrong with it, the keys of before stay. Raises as the class."""
        if self.path is None:
            return
        shown = printable(str(self.path))
        try:
            with self.path.open(encoding="utf-8") as file:
                text = file.read(MAX_FILE + 1)
        except OSError as error:
            raise ServeError(f"{shown}: the keys cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ServeError(f"{shown}: not a text file; write one key a line") from None
        if len(text) > MAX_FILE:
            raise ServeError(f"{shown}: more than {MAX_FILE} characters; not a file of keys")
        lines = [line.strip() for line in text.splitlines()]
        self._hashes = self._hashed([line for line in lines if not line.startswith("#")], shown)

    def who(self, key: str) -> str | None:
        """Name of a key's holder; None for a key that is not on the ring. Every key is compared, always."""
        asked = self._hash(key)
        found = None
        for name, known in self._hashes.items():
            if hmac.compare_digest(asked, known):
                found = name
        return found

    def admit(self, headers: Headers) -> str:
        """Name of who sent a request, by ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

        Raises:
            Problem: 401, no key or not a known one.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        who = self.who(key) if key else None
        if who is None:
            raise Problem(
                "unauthorized",
                "send a known key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return who

    def _hash(self, key: str) -> bytes:
        return hmac.digest(self._salt, key.encode(errors="replace"), "sha256")

    def _hashed(self, lines: list[str], source: str) -> dict[str, bytes]:
        hashes: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            name, key = line.split(None, 1) if len(line.split()) > 1 else ("", line)
            where = f"{source}: key {number}"  # never the key itself
            if _KEY.fullmatch(key) is None:
                raise ServeError(f"{where}: write NAME KEY or KEY, the key in visible ASCII without spaces")
            if len(key) < SHORTEST:
                raise ServeError(f"{where}: shorter than {SHORTEST} characters; make one with `openssl rand -hex 32`")
            name = name or f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            if _NAME.fullmatch(name) is None:
                raise ServeError(f"{where}: a name has letters, digits, '.', '_' and '-', at most 64")
            if name in hashes or self._hash(key) in hashes.values():
                raise ServeError(f"{where}: its name or key is there twice; give each its own")
            hashes[name] = self._hash(key)
        if not hashes:
            raise ServeError(f"{source}: no key in it; write one a line, made with `openssl rand -hex 32`")
        return hashes
