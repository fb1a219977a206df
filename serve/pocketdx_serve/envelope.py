"""Around every request: its id, security headers, a log line, and an end to whatever nobody caught."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from typing import TYPE_CHECKING, Any, Final

from pocketdx_serve.body import ClientGone
from pocketdx_serve.logs import log_request
from pocketdx_serve.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pocketdx_serve.metrics import Metrics

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET: Final = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
CLIENT_GONE: Final = 499
"""Logged, never sent: nginx's code for a client that closed the connection before its answer."""

SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
"""On every response that does not set them itself. No CORS headers: pages of other sites get nothing."""

log = logging.getLogger("pocketdx.serve")


class Envelope:
    """ASGI middleware; written against ASGI directly, because it costs each request.

    Args:
        app: for everything else.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of(scope)
        notes: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, notes=notes)
        status = 0

        async def send_sealed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                present = {name for name, _ in headers}
                headers.extend(header for header in SECURITY_HEADERS if header[0] not in present)
                headers.append((b"x-request-id", request_id.encode()))
                message["headers"] = headers
            await send(message)

        self.metrics.in_flight += 1
        try:
            await self.app(scope, receive, send_sealed)
        except ClientGone:
            status = CLIENT_GONE
        except Exception:
            log.exception("unhandled", extra={"fields": {"request_id": request_id}})
            notes["reason"] = "internal"
            if not status:
                await _send_internal(request_id, send_sealed)
        finally:
            self.metrics.in_flight -= 1
            seconds = time.perf_counter() - started
            # The route's template, not the path: a path is the client's text and may be anything.
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.request(route, status, notes.get("reason"), seconds)
            _log(scope, route, status, request_id, notes, seconds)


def request_id_of(scope: Scope) -> str:
    """The client's X-Request-ID if it is harmless, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits."""
    # Not a secret; os.urandom would be a system call that gives up the GIL, a third of a millisecond under load.
    return random.randbytes(16).hex()


async def _send_internal(request_id: str, send: Send) -> None:
    problem = Problem("internal", "this is a fault of the server, not of the request; see its log")
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    await send({"type": "http.response.start", "status": problem.kind.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem.document(request_id)).encode()})


def _log(scope: Scope, route: str, status: int, request_id: str, notes: dict[str, Any], seconds: float) -> None:
    if route in _QUIET and status == 200:
        return
    fields = {
        "request_id": request_id,
        "method": scope["method"] if scope["method"] in _METHODS else "other",
        "route": route,
        "status": status,
        "ms": round(seconds * 1000, 1),
        **notes,
    }
    log_request(log, fields)
