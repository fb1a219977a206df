"""A socket, the signals and uvicorn around an app, in this process."""

from __future__ import annotations

import errno
import logging
import math
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from pocketdx_serve.body import WHOLE_BODY
from pocketdx_serve.errors import ServeError

if TYPE_CHECKING:
    import asyncio
    from types import FrameType

    from fastapi import FastAPI

    from pocketdx_serve.breaks import Breaks
    from pocketdx_serve.shedding import Shedding

BACKLOG = 4096
MAX_FILES = 65_536
HEADER_TIMEOUT = 15.0
"""Seconds within which a connection has to come up with a whole request header."""
SWITCH_SECONDS = 50e-6
"""For how long a thread keeps Python's lock while another wants it. With the usual 5 ms the threads that decode and the
event loop hold each other up: 17 % of two CPUs lay idle under full load, with this 8 to 12 %."""
GATHER_SECONDS = 0.005
GATHER_BYTES = 4 * 2**20
"""A body is handed on when it is complete, and until then when so much of it has come, or after so long. A photo comes
in eight pieces; waking its task for each, and copying them again, is a fifth of what it costs the event loop."""
GRACE = 5.0
"""Seconds beyond the deadline that a shutdown waits for answers on their way."""

log = logging.getLogger("pocketdx.serve")


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        ServeError: the port is taken or not allowed, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise ServeError(f"--host {host}: not a host name or address known here; try 127.0.0.1") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Now, not when uvicorn does: two servers that have only bound a port would both believe to have it.
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = {
            errno.EADDRINUSE: "is in use; choose another with --port, or 0 for any free one",
            errno.EACCES: "needs more rights; choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: "cannot be opened: --host is not an address of this machine",
        }.get(error.errno or 0, f"cannot be opened: {error.strerror}")
        raise ServeError(f"port {port} on {host} {why}") from None
    return sock


def url_of(sock: socket.socket) -> str:
    """``http://host:port`` of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family is socket.AF_INET6 else f"http://{host}:{port}"


def server_for(app: FastAPI) -> uvicorn.Server:
    """uvicorn for an app of `create_app`; ``run(sockets=[...])`` serves until ``should_exit`` is set."""
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"shedding": app.state.shedding, "breaks": app.state.breaks}),
        loop="auto",  # uvloop where it is installed
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(app.state.service.settings.deadline + GRACE),
    )
    return _Server(config, app)


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serve ``app`` on ``sock`` until SIGTERM or SIGINT, then finish what is in flight and return."""
    _allow_many_connections()
    sys.setswitchinterval(SWITCH_SECONDS)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: app.state.service.reload_soon())
    log.info("listening", extra={"fields": {"url": url_of(sock)}})
    server_for(app).run(sockets=[sock])
    log.info("stopped")


def _allow_many_connections() -> None:
    """Raise the limit of open files to what may be had: the usual 1024 is soon full of slow connections."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """uvicorn that reports not ready from the signal on, and returns instead of killing itself by it."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn remembers the signal and raises it again at its end, for an exit status other than 0.
        self._app.state.service.drain()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


class _Pieces:
    """A body as it came, joined once: what uvicorn calls of a bytearray, which copies all of it time and again."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> _Pieces:
        self._pieces.append(piece)
        self._size += len(piece)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def _whole_body(weak: ref[Any]) -> bytes | None:
    """As `cycle.receive` would hand it over, without a wait that may have to be timed."""
    cycle = weak()
    if cycle is None or cycle.more_body or cycle.disconnected or cycle.response_complete:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()
    return body


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP protocol that sheds load early and closes connections which sit between two requests.

    Where uvicorn has httptools, requests that `Shedding` refuses never become a task. (Without it they do, and the app
    refuses them.)

    uvicorn limits idle connections, but not those that send a header byte by byte or go on sending a body
    that was refused. Here a connection is closed after a whole `HEADER_TIMEOUT` without a request in work.
    """

    shedding: Shedding
    breaks: Breaks
    _last: Any = None
    _refusals = 0
    # Whether the next byte is the first of a request. Never so without httptools, which alone tells.
    _between = False
    _watch: asyncio.TimerHandle | None = None
    _gathering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.breaks.connected()
        self._between = hasattr(self, "parser")
        self._watch = self.loop.call_later(HEADER_TIMEOUT, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._gathered()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete or len(cycle.body) + len(body) > GATHER_BYTES:
            self._gathered()
            super().on_body(body)  # which wakes the task, and reads no more until that has taken what there is
            return
        if not cycle.body:
            cycle.body = _Pieces()
        cycle.body += body
        if self._gathering is None:
            self._gathering = self.loop.call_later(GATHER_SECONDS, self._hand_on, cycle)

    def on_message_complete(self) -> None:
        self._between = True
        self._gathered()
        super().on_message_complete()

    def _hand_on(self, cycle: Any) -> None:
        self._gathering = None
        cycle.message_event.set()

    def _gathered(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def data_received(self, data: bytes) -> None:
        idle = self._between and not self.pipeline and (self.cycle is None or self.cycle.response_complete)
        refusal = self.shedding.refusal_of_whole(data) if idle and self.shedding.full else None
        if refusal is None:
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._refusals += 1
        self.transport.write(refusal)
        self.breaks.soon()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # Weakly: in a circle of references the body would stay until the garbage collector comes by.
        cycle.scope.setdefault("extensions", {})[WHOLE_BODY] = partial(_whole_body, ref(cycle))
        shedding = self.shedding
        if not shedding.concerns(cycle.scope):
            super()._start_asgi_task(cycle, app)
        elif shedding.reserve():
            super()._start_asgi_task(cycle, app)
            self.loop.call_soon(shedding.release)  # behind the task's first step
        else:
            # A client that waits for "100 Continue" may never send its body: what comes next could not be told apart.
            keep_alive = cycle.keep_alive and not cycle.waiting_for_100_continue
            # As `RequestResponseCycle.send` does with the last part of a response; the rest of the body is dropped.
            cycle.response_started = cycle.response_complete = True
            self.transport.write(shedding.refusal(cycle.scope, keep_alive=keep_alive))
            self.breaks.soon()
            if not keep_alive:
                self.transport.close()
            if self.pipeline:  # not at once: of a thousand requests in a row, each would call for the next
                self.loop.call_soon(cycle.on_response)
            else:
                cycle.on_response()

    def _look(self) -> None:
        now = self.cycle, self._refusals
        if now == self._last and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
            return
        self._last = now
        self._watch = self.loop.call_later(HEADER_TIMEOUT, self._look)
