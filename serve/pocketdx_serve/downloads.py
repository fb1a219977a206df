"""Bytes and files for clients to keep: validators (ETag), single ranges, HEAD. RFC 9110, sections 13 and 14."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi import Response

from pocketdx_serve.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import Headers
    from starlette.types import Receive, Scope, Send

CHUNK: Final = 256 * 1024
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def etag_of(digest: str) -> str:
    """A strong validator."""
    return f'"{digest}"'


def unchanged(headers: Headers, etag: str) -> bool:
    """Whether If-None-Match says that the client has it already."""
    asked = headers.get("if-none-match", "")
    return asked.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in asked.split(",")]


def span(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a single range; None for the whole (also of what is not understood).

    Raises:
        Problem: 416, the range begins past the end.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= size:
        raise Problem("range", f"it has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, end


class Download(Response):
    """A response with ``data`` or the part of it that was asked for; sent in pieces, as the client takes them."""

    def __init__(self, data: bytes, etag: str, media_type: str, request: Headers, headers: Mapping[str, str]) -> None:
        super().__init__(media_type=media_type, headers={"ETag": etag, "Accept-Ranges": "bytes", **headers})
        del self.headers["content-length"]
        self._data = memoryview(data)
        if unchanged(request, etag):
            self.status_code = 304
            self._data = self._data[:0]
            return
        if request.get("if-range", etag) == etag and (part := span(request.get("range"), len(data))):
            self.status_code = 206
            self._data = self._data[slice(*part)]
            self.headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{len(data)}"
        self.headers["Content-Length"] = str(len(self._data))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; uvicorn waits between the pieces until the client has taken them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            for at in range(0, len(self._data), CHUNK):
                piece = bytes(self._data[at : at + CHUNK])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
