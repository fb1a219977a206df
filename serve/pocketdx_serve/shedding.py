"""While the server is full: a refusal that costs next to nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Final

from pocketdx_serve.envelope import SECURITY_HEADERS, new_request_id, request_id_of
from pocketdx_serve.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from starlette.types import Scope

    from pocketdx_serve.metrics import Metrics

OVERLOADED: Final = Problem("overloaded", "as many images as may wait are waiting; try again in a moment")
_BODY: Final = json.dumps(OVERLOADED.document("%s")).encode()
_HEADERS: Final = (
    *SECURITY_HEADERS,
    (b"content-type", MEDIA_TYPE.encode()),
    (b"retry-after", OVERLOADED.headers["Retry-After"].encode()),
)
_HEAD: Final = b"".join(
    [
        b"HTTP/1.1 %d Service Unavailable\r\n" % OVERLOADED.kind.status,
        *(b"%s: %s\r\n" % header for header in _HEADERS),
        b"x-request-id: ",
    ]
)

_MOST_HEAD: Final = 4096
_MOST_KNOWN: Final = 256
"""Heads that are remembered, with what was found of them: clients send the same one again and again."""
# Headers that change what comes next on a connection, or that an answer repeats.
_NOT_PLAIN: Final = (b"\nexpect", b"\nconnection", b"\ntransfer-encoding", b"\nupgrade", b"\nx-request-id")

log = logging.getLogger("pocketdx.serve")


def _refusal(request_id: bytes, *, keep_alive: bool) -> bytes:
    body = _BODY % request_id
    last = b"" if keep_alive else b"connection: close\r\n"
    return b"%s%s\r\ncontent-length: %d\r\n%s\r\n%s" % (_HEAD, request_id, len(body), last, body)


_WHOLE: Final = _refusal(b"0" * 32, keep_alive=True).replace(b"%", b"%%").replace(b"0" * 32, b"%b")
"""With two places for the id, of 32 digits, of a request that came without one."""


class Shedding:
    """Refuses requests for images on the wire, before a task is made of them or anything else looks at them.

    What a refusal costs is taken from the answers that others wait for: at ten times the load that a server can
    bear, nine of ten requests are refused. Such refusals are counted like any, and logged together.

    Args:
        metrics: where requests are counted.
        room: how many images the server can take now.
        paths: of the addresses that take images.
    """

    def __init__(self, metrics: Metrics, room: Callable[[], int], paths: Collection[str]) -> None:
        self._room = room
        self._reserved = 0
        kind = OVERLOADED.kind
        self._refusals = {path: metrics.refusals(path, kind.status, kind.reason) for path in paths}
        self._starts = {f"POST {path} HTTP/1.1".encode(): path for path in paths}
        self._known: dict[bytes, tuple[str, int] | None] = {}  # by a digest of the head
        self._refused = 0
        self._since = 0.0

    def concerns(self, scope: Scope) -> bool:
        """Whether a request is one for images."""
        return scope["path"] in self._refusals and scope["method"] == "POST"

    @property
    def full(self) -> bool:
        """Whether there is no place for anyone."""
        return self._room() <= self._reserved

    def refusal_of_whole(self, data: bytes) -> bytes | None:
        """The response to a request that is there as a whole and has nothing unusual; None where that is not sure.

        Then it need not be parsed, which takes longer than all the rest. What is not plain goes the usual way, and is
        refused there.

        Args:
            data: what came in at once, from the first byte of a request on.
        """
        end = data.find(b"\r\n\r\n", 0, _MOST_HEAD)
        if end < 0:
            return None
        plain = self._remembered(data[:end])
        if plain is None or len(data) != end + 4 + plain[1]:
            return None
        self._count(plain[0])
        request_id = new_request_id().encode()
        return _WHOLE % (request_id, request_id)

    def _remembered(self, head: bytes) -> tuple[str, int] | None:
        """As `_plain`, looked up where the same head has come before. Of heads, which hold keys, no copy is kept."""
        mark = hashlib.blake2b(head, digest_size=16).digest()
        try:
            return self._known[mark]
        except KeyError:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            plain = self._known[mark] = self._plain(head)
            return plain

    def _plain(self, head: bytes) -> tuple[str, int] | None:
        """Path and length of the body of a request for images whose head has nothing unusual; None of any other.

        Args:
            head: up to the empty line.
        """
        first, _, _ = head.partition(b"\r\n")
        fields = head[len(first) :].lower()
        length = fields.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip(b" ")
        plain = (
            first in self._starts
            and fields.count(b"\r\n") == fields.count(b"\n") == fields.count(b"\r")
            and b"\n " not in fields
            and b"\n\t" not in fields
            and not any(each in fields for each in _NOT_PLAIN)
            and fields.count(b"content-length") == 1
            and length.isdigit()
            and len(length) < 12
        )
        return (self._starts[first], int(length)) if plain else None

    def reserve(self) -> bool:
        """Keep a place for a request, if there is one, until `release` is called.

        Before its first turn of the event loop is over, nobody else sees what a request takes: of a hundred that arrive
        at the same moment, a single free place would let all through, to be refused later and at many times the cost.
        """
        if self.full:
            return False
        self._reserved += 1
        return True

    def release(self) -> None:
        """Give back the place of a request that has had its first turn: it has taken its own by then, or waits."""
        self._reserved -= 1

    def refusal(self, scope: Scope, *, keep_alive: bool) -> bytes:
        """The whole response to a request that has no place; counts it.

        Args:
            scope: of the request, as ASGI has it.
            keep_alive: whether the connection stays open behind it.
        """
        self._count(scope["path"])
        return _refusal(request_id_of(scope).encode(), keep_alive=keep_alive)

    def _count(self, path: str) -> None:
        self._refusals[path]()
        self._refused += 1
        now = time.monotonic()
        if now - self._since > 1:
            log.warning("overloaded", extra={"fields": {"refused": self._refused}})
            self._refused, self._since = 0, now
