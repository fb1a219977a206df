"""Requests as bytes, for tests that send them in pieces."""

from __future__ import annotations


def diagnose_head(length: int, *more: bytes) -> bytes:
    """The head of a POST of one JPEG of so many bytes, with `more` header lines."""
    lines = [
        b"POST /v1/diagnose HTTP/1.1",
        b"Host: x",
        b"Content-Type: image/jpeg",
        b"Content-Length: %d" % length,
        *more,
    ]
    return b"\r\n".join([*lines, b"", b""])
