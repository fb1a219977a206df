"""Problems as HTTP responses, and the handlers that turn every exception into one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from pocketdx_serve.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Receive, Scope, Send

LINGER_SECONDS = 2.0
_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "content-type"}


class WholeResponse(Response):
    """A response of JSON that is complete, made without what `Response` does to find out what it is."""

    def __init__(self, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        length = b"%d" % len(body)
        self.raw_headers = [(b"content-type", b"application/json"), (b"content-length", length), *headers]


class ClosingResponse(Response):
    """A response sent while the client is still sending its body; then the connection is closed.

    Closing at once would reset the connection, and the client would see that instead of the answer. So the
    rest of the body is read and thrown away for a moment, as nginx's lingering_close does.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, linger, close."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answer_problem(request: Request, error: Exception) -> Response:
    """The response for a `Problem`."""
    assert isinstance(error, Problem)
    request.state.notes["reason"] = error.kind.reason
    response = ClosingResponse if error.body_unread else Response
    document = error.document(request.state.request_id)
    if request.url.path.startswith("/v2"):
        document["error"] = error.detail  # where clients of that protocol look for it
    return response(
        json.dumps(document),
        status_code=error.kind.status,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """The response for Starlette's own refusals (no such route, wrong method), as a problem document too."""
    assert isinstance(error, HTTPException)
    reason = _BY_STATUS.get(error.status_code, "bad-request" if error.status_code < 500 else "internal")
    problem = Problem(reason, f"{error.detail}; see /docs", headers=error.headers)
    return await answer_problem(request, problem)


async def answer_invalid(request: Request, _error: Exception) -> Response:
    """The response for parameters that FastAPI refuses; its own would quote them."""
    return await answer_problem(request, Problem("bad-request", "a parameter is not what /docs says it has to be"))
