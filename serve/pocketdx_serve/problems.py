"""Refusals as problem details (RFC 9457): one table of all that the server can answer instead of a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketdx_runtime.errors import ImageReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""Retry-After of a full queue: a default queue empties in about a second even with 12-megapixel photos."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of refusal: its HTTP status, stable reason code and title."""

    status: int
    reason: str
    title: str

    @property
    def type(self) -> str:
        """URI that identifies the kind (the ``type`` member of RFC 9457); a name, not an address."""
        return f"urn:pocketdx:problem:{self.reason}"


def _kinds(*rows: tuple[int, str, str]) -> dict[str, Kind]:
    return {reason: Kind(status, reason, title) for status, reason, title in rows}


KINDS: Mapping[str, Kind] = _kinds(
    # The picture itself. The reason codes are those of the runtime, so that every tool says the same.
    (400, ImageReason.EMPTY.value, "The image is empty"),
    (413, ImageReason.TOO_LARGE.value, "The image or request is too large"),
    (415, ImageReason.NOT_AN_IMAGE.value, "Not an image format that is known here"),
    (415, ImageReason.UNSUPPORTED.value, "This kind of image is not supported"),
    (415, ImageReason.MISSING_EXTRA.value, "This server was installed without support for this format"),
    (422, ImageReason.TRUNCATED.value, "The image is cut off"),
    (422, ImageReason.CORRUPT.value, "The image is damaged"),
    (422, ImageReason.ZERO_SIZE.value, "The image has no pixels"),
    (422, ImageReason.MULTI_FRAME.value, "The image has several frames or pages"),
    (422, ImageReason.AMBIGUOUS.value, "The image does not say what is black and what is white"),
    # The request.
    (400, "malformed-multipart", "The multipart body cannot be read"),
    (400, "unexpected-field", "The multipart body has a field that is not known here"),
    (400, "bad-request", "The request cannot be read"),
    (401, "unauthorized", "An API key is needed"),
    (404, "not-found", "There is nothing at this address"),
    (404, "output-missing", "The model has no such output"),
    (404, "model-missing", "There is no model of that name"),
    (404, "file-missing", "The server does not have this file"),
    (405, "method-not-allowed", "This method is not allowed here"),
    (408, "read-timeout", "The request body came too slowly"),
    (413, "too-many-images", "Too many images in one request"),
    (416, "range", "The range begins past the end"),
    (415, "content-type", "This content type is not read here"),
    (415, "content-encoding", "Compressed request bodies are not read here"),
    (429, "rate-limited", "This key has sent too much"),
    # The server. All of these are deliberate, except the last.
    (503, "overloaded", "The server is full"),
    (503, "audit-unavailable", "The audit log cannot be written, so no answer is given"),
    (503, "out-of-memory", "The server has no memory left for this image"),
    (503, "starting", "The model is being loaded"),
    (503, "draining", "The server is shutting down"),
    (503, "stalled", "No worker has finished for a long time"),
    (503, "failed", "The model did not pass its self-test"),
    (504, "deadline", "No answer in time"),
    (500, "internal", "A fault of the server"),
)


def kind_of(reason: ImageReason) -> Kind:
    """The kind for a picture's refusal; reasons that only a path can have fall back to "corrupt"."""
    return KINDS.get(reason.value, KINDS[ImageReason.CORRUPT.value])


@dataclass(frozen=True, slots=True)
class ImageFault:
    """What is wrong with one image of a request: its 0-based position, a reason code and one sentence."""

    index: int
    reason: str
    detail: str


class Problem(Exception):  # noqa: N818  (an answer, not an error of ours)
    """Raised by a handler to answer with a problem document.

    Attributes:
        kind: what happened.
        detail: one sentence for this occurrence, with the remedy. Never holds a file name or image content.
        errors: the images at fault, where images are at fault.
        headers: further response headers.
        body_unread: the client is still sending; the connection has to be closed after the answer.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        errors: Sequence[ImageFault] = (),
        headers: Mapping[str, str] | None = None,
        body_unread: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.kind = KINDS[reason]
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        if self.kind.status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))
        self.body_unread = body_unread

    def document(self, request_id: str) -> dict[str, Any]:
        """The JSON members, in the order of RFC 9457, then ours."""
        members: dict[str, Any] = {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "reason": self.kind.reason,
            "request_id": request_id,
        }
        if self.errors:
            members["errors"] = [
                {"index": fault.index, "reason": fault.reason, "detail": fault.detail} for fault in self.errors
            ]
        return members


def refuse_images(faults: Sequence[ImageFault], images: int) -> Problem:
    """The problem of a request of ``images`` images, some refused: the first leads, all are listed."""
    first = faults[0]
    detail = first.detail if images == 1 else f"image {first.index}: {first.detail}"
    if len(faults) > 1:
        detail += f" ({len(faults)} of {images} images were refused; `errors` lists them)"
    return Problem(first.reason, detail, errors=faults)
