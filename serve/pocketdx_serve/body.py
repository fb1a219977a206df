"""The images of a request, read off the wire under limits; nothing touches a disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pocketdx_serve.multipart import ImageParts
from pocketdx_serve.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import Request

    from pocketdx_serve.settings import Settings

RAW_TYPES: Final = ("application/dicom", "application/octet-stream")
ACCEPTED: Final = "multipart/form-data, image/*, " + ", ".join(RAW_TYPES)
WHOLE_BODY: Final = "pocketdx.whole_body"
"""ASGI extension of our server: a function that gives the body if all of it has come, else None. To wait for it, with a
time-out that has to be set and taken back, costs a request more than to read it."""
MIN_RATE: Final = 500
"""Bytes a second below which an upload is given up, as Apache's mod_reqtimeout has it by default."""


class ClientGone(Exception):  # noqa: N818  (nobody is left to be told)
    """The client closed the connection before it had its answer."""


class HeldBytes:
    """How many bytes of request bodies the server holds now, all requests together, and how many it may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0

    def take(self, size: int) -> None:
        """Count ``size`` more bytes.

        Raises:
            Problem: 503, they would pass the limit; they were not counted.
        """
        if self.total + size > self.limit:
            raise Problem("overloaded", "too many uploads at the same time; try again in a moment")
        self.total += size

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes less."""
        self.total -= size


class Upload:
    """One request's body: its images, and its share of the held bytes until ``release`` is called."""

    def __init__(self, held: HeldBytes, settings: Settings, request: Request) -> None:
        self._held = held
        self._settings = settings
        self._request = request
        # The first of each name. (Starlette's headers look through all of them for every one asked for.)
        self._headers: dict[bytes, bytes] = dict(reversed(list(request.scope["headers"])))
        self.size = 0

    def release(self) -> None:
        """Give the held bytes back; safe to call at any time, also twice."""
        self._held.give_back(self.size)
        self.size = 0

    async def images(self) -> list[bytes]:
        """Read the images of a multipart body, or the single image that a raw body is.

        Raises:
            Problem: 400 empty or malformed, 408 too slow, 413 too large, 415 another content type, 503 full.
            ClientGone: the connection closed before the body was complete.
        """
        content_type = self._headers.get(b"content-type", b"application/octet-stream").decode("latin-1")
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type.startswith("image/") or media_type in RAW_TYPES:
            return [await self.body()]
        self._check_encoding()
        if media_type == "multipart/form-data":
            parts = ImageParts(content_type, self._settings.max_images)
            await self._read(parts.feed)
            images = parts.finish()
            if not images:
                raise Problem("empty", "the form has no image; send files in a field named `image`")
            return images
        raise Problem(
            "content-type",
            f"send {ACCEPTED}; with curl: -F image=@FILE, or -H 'Content-Type: image/jpeg' --data-binary @FILE",
            headers={"Accept": ACCEPTED},
        )

    async def body(self) -> bytes:
        """Read the body as it is; raises as `images`."""
        self._check_encoding()
        chunks: list[bytes] = []
        await self._read(chunks.append)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _read(self, take: Callable[[bytes], None]) -> None:
        """Hand the body over chunk by chunk; refuse what is declared too large before its first byte is read."""
        declared = self._headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:19]) > self._settings.max_bytes:
            raise self._too_large(body_unread=True)
        whole = self._request.scope.get("extensions", {}).get(WHOLE_BODY, _unknown)()
        if whole is None:
            await self._read_on(take)
        else:
            self._keep(whole, take, body_unread=False)

    async def _read_on(self, take: Callable[[bytes], None]) -> None:
        patience = self._settings.read_timeout
        clock = asyncio.get_running_loop().time
        start = now = clock()
        more = True
        while more:
            # Both rules are needed: the first ends silence, the second a byte every few seconds.
            until = min(now + patience, start + patience + self.size / MIN_RATE)
            try:
                async with asyncio.timeout_at(until):
                    message = await self._request.receive()
            except TimeoutError:
                raise Problem("read-timeout", "the body came too slowly; try again", body_unread=True) from None
            now = clock()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            self._keep(message.get("body", b""), take, body_unread=more)

    def _keep(self, chunk: bytes, take: Callable[[bytes], None], *, body_unread: bool) -> None:
        if self.size + len(chunk) > self._settings.max_bytes:
            raise self._too_large(body_unread=body_unread)
        self._held.take(len(chunk))
        self.size += len(chunk)
        if chunk:
            take(chunk)

    def _too_large(self, *, body_unread: bool) -> Problem:
        detail = f"the request has more than {self._settings.max_bytes} bytes; send fewer or smaller images"
        return Problem("too-large", detail, body_unread=body_unread)

    def _check_encoding(self) -> None:
        if self._headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Problem(
                "content-encoding",
                "send the body without Content-Encoding; images are compressed already",
                headers={"Accept-Encoding": "identity"},
            )


def _unknown() -> None:
    """The `WHOLE_BODY` of other servers than ours."""
