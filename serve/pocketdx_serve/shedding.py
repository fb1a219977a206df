"""While the server is full: a refusal that costs next to nothing."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Final

from pocketdx_serve.envelope import SECURITY_HEADERS, request_id_of
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
# Headers that change what comes next on a connection, or that an answer repeats.
_NOT_PLAIN: Final = (b"\nexpect", b"\nconnection", b"\ntransfer-encoding", b"\nupgrade", b"\nx-request-id")

log = logging.getLogger("pocketdx.serve")


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
        self._metrics = metrics
        self._room = room
        self._reserved = 0
        self._paths = frozenset(paths)
        self._starts = {f"POST {path} HTTP/1.1\r\n".encode(): path for path in paths}
        self._refused = 0
        self._since = 0.0

    def concerns(self, scope: Scope) -> bool:
        """Whether a request is one for images."""
        return scope["path"] in self._paths and scope["method"] == "POST"

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
        first = next((each for each in self._starts if data.startswith(each)), None)
        if first is None:
            return None
        start = len(first) - 2  # the end of the first line begins the first header
        end = data.find(b"\r\n\r\n", start, _MOST_HEAD)
        if end < 0:
            return None
        head = data[start:end].lower()
        lines = head.count(b"\r\n")
        _, _, after = head.partition(b"\r\ncontent-length:")
        length = after.partition(b"\r\n")[0].strip(b" ")
        plain = (
            lines == head.count(b"\n") == head.count(b"\r")
            and b"\n " not in head
            and b"\n\t" not in head
            and not any(each in head for each in _NOT_PLAIN)
            and head.count(b"content-length") == 1
            and length.isdigit()
            and len(length) < 12
            and len(data) == end + 4 + int(length)
        )
        if not plain:
            return None
        return self.refusal({"path": self._starts[first], "headers": ()}, keep_alive=True)

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
        request_id = request_id_of(scope).encode()
        body = _BODY % request_id
        last = b"" if keep_alive else b"connection: close\r\n"
        return b"%s%s\r\ncontent-length: %d\r\n%s\r\n%s" % (_HEAD, request_id, len(body), last, body)

    def _count(self, path: str) -> None:
        self._metrics.request(path, OVERLOADED.kind.status, OVERLOADED.kind.reason, 0.0)
        self._refused += 1
        now = time.monotonic()
        if now - self._since > 1:
            log.warning("overloaded", extra={"fields": {"refused": self._refused}})
            self._refused, self._since = 0, now
