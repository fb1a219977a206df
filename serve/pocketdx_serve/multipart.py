"""Images out of a multipart/form-data body (RFC 7578), in memory: Starlette's form parser spools to disk."""

from __future__ import annotations

import logging

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pocketdx_serve.problems import Problem

# It logs bytes of the body, and each broken one twice.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

FIELDS = frozenset({b"image", b"images"})
MAX_HEADER_BYTES = 8 * 1024
"""Header bytes of one part: a content disposition with a long file name has a few hundred."""
MAX_BOUNDARY = 70
"""RFC 2046, section 5.1.1."""


class ImageParts:
    """Takes a multipart body in chunks; keeps what its ``image`` and ``images`` parts hold, nothing else.

    File names and part headers are read past and forgotten. A field counts whether or not it has a file name.

    Args:
        content_type: the request's Content-Type header, with the boundary.
        max_images: how many parts are accepted.

    Raises:
        Problem: 400 when the body is malformed, has another field or ends early; 413 past ``max_images``.
            ``feed`` and ``finish`` raise it too.
    """

    def __init__(self, content_type: str, max_images: int) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= MAX_BOUNDARY:
            raise Problem("malformed-multipart", "the Content-Type header names no usable boundary")
        self._max_images = max_images
        self._images: list[bytes] = []
        self._chunks: list[bytes] = []
        self._header = bytearray()
        self._value = bytearray()
        self._header_bytes = 0
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if not chunk:
            return
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise Problem("malformed-multipart", "the body does not follow multipart/form-data") from None

    def finish(self) -> list[bytes]:
        """The parts' contents in order, once the whole body was fed."""
        if not self._ended:
            raise Problem("malformed-multipart", "the body ends before its closing boundary; send it again")
        return self._images

    def _part_begins(self) -> None:
        if len(self._images) >= self._max_images:
            raise Problem("too-many-images", f"more than {self._max_images} images; send them in several requests")
        self._chunks = []
        self._header_bytes = 0
        self._disposition = b""
        self._header.clear()
        self._value.clear()

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise Problem("malformed-multipart", f"a part has more than {MAX_HEADER_BYTES} bytes of headers")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") not in FIELDS:
            raise Problem("unexpected-field", "every part has to be a file in a field named `image` or `images`")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _part_ends(self) -> None:
        self._images.append(b"".join(self._chunks))
        self._chunks = []

    def _end(self) -> None:
        self._ended = True
