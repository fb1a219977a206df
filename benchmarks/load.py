"""A load generator: POSTs one body over and over from a process of its own, and says what came back.

Closed loop (--connections): each connection sends its next request when it has its answer; this finds the most that a
server can do. Open loop (--rate): requests are due at fixed times whatever the server does, and a latency counts from
the time when its request was due, so that a slow server cannot hide behind a client that waits for it ("coordinated
omission"). Only to this machine, for at most --seconds.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 60.0
LOCAL = ("127.0.0.1", "localhost", "::1")
STEP = 0.001  # seconds
_AT_ONCE = 65536


class Connection:
    """One keep-alive connection. Reads a status and a Content-Length, as all servers compared here send them."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(address)
        self.due = 0.0
        self.used = False
        self.idle = False
        self.left = memoryview(b"")
        self._begun = b""

    def ask(self, request: bytes, due: float) -> None:
        """Begin to send."""
        self.due, self.left, self.idle = due, memoryview(request), False
        self.send()

    def send(self) -> None:
        """Send what is left, as far as the system takes it."""
        with suppress(BlockingIOError, ConnectionError):  # not connected yet, full; or closed, as the next read tells
            self.left = self.left[self.sock.send(self.left) :]

    def receive(self) -> tuple[int, bool] | None:
        """Status, and whether the connection stays open; None while the answer is not complete.

        Raises:
            ConnectionError: it was closed.
        """
        try:
            data = self.sock.recv(_AT_ONCE)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError
        data = self._begun + data
        self._begun = data
        head, mark, body = data.partition(b"\r\n\r\n")
        if not mark:
            return None
        head = head.lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return None
        self._begun = b""
        self.used = True
        return int(head[9:12]), b"\r\nconnection: close" not in head


class Load:
    """What was sent and what came back. One thread that waits for all connections at once."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._address = (host, port)
        self._request = request
        self._poll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._free: list[Connection] = []  # closed ones among them
        self.on_their_way = 0
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []

    def closed(self, connections: int, seconds: float) -> None:
        """Each connection sends its next request when it has its answer."""
        end = time.perf_counter() + seconds
        for _ in range(connections):
            self._send(time.perf_counter())
        while self.on_their_way:
            for _ in range(self._wait(PATIENCE)):
                if (now := time.perf_counter()) < end:
                    self._send(now)

    def opened(self, rate: float, seconds: float, most: int) -> None:
        """Requests are due at fixed times; while `most` are on their way, they are not sent.

        The server may be on the same CPU, and to wake up for each request and each answer takes as much of it as to
        send and read them. So, where more than one is due in a `STEP`, what is due in the same one is sent in one go.
        """
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            while (left := due - time.perf_counter()) > 0:
                if rate * STEP > 1:
                    time.sleep(max(left, STEP))
                    self._wait(0)
                else:
                    self._wait(left)
            if number % 32 == 0:  # for when it is late and has no time to wait
                self._wait(0)
            if self.on_their_way < most:
                self._send(due)
            else:
                self.statuses["not sent"] += 1
        while self.on_their_way:
            self._wait(PATIENCE)

    def _send(self, due: float) -> None:
        self.on_their_way += 1
        while self._free:
            if (connection := self._free.pop()).idle:
                self._ask(connection, due)
                return
        self._ask(self._connect(), due)

    def _connect(self) -> Connection:
        made = Connection(self._address)
        self._open[made.sock.fileno()] = made
        self._poll.register(made.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return made

    def _ask(self, connection: Connection, due: float) -> None:
        connection.ask(self._request, due)
        if connection.left:
            self._poll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _wait(self, seconds: float) -> int:
        """Take what comes within some time; returns how many answers (or failures) that were."""
        done = 0
        for number, events in self._poll.poll(seconds):
            connection = self._open[number]
            if events & select.EPOLLOUT:
                connection.send()
                if not connection.left:
                    self._poll.modify(number, select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                done += self._read(connection)
        self._give_up()
        return done

    def _read(self, connection: Connection) -> bool:
        """Whether a request got its answer, or never will."""
        try:
            answer = connection.receive()
        except ConnectionError as error:
            waits = not connection.idle
            self._close(connection)
            if waits and connection.used:  # closed while it was idle, as servers do: any client sends again
                self.statuses["sent again"] += 1
                self._ask(self._connect(), connection.due)
                return False
            return waits and self._done(type(error).__name__)
        if answer is None:
            return False
        status, stays = answer
        if status == 200:
            self.latencies.append(time.perf_counter() - connection.due)
        if stays:
            connection.idle = True
            self._free.append(connection)
        else:
            self._close(connection)
        return self._done(str(status))

    def _done(self, how: str) -> bool:
        self.statuses[how] += 1
        self.on_their_way -= 1
        return True

    def _give_up(self) -> None:
        """Nobody waits for longer than `PATIENCE`. Looks at one connection a call: this is no clock."""
        late = time.perf_counter() - PATIENCE
        oldest = next(iter(self._open.values()), None)
        if oldest is None:
            return
        if oldest.idle or oldest.due > late:  # look at another one next time
            self._open[oldest.sock.fileno()] = self._open.pop(oldest.sock.fileno())
            return
        self._close(oldest)
        self._done("TimeoutError")

    def _close(self, connection: Connection) -> None:
        connection.idle = False
        del self._open[connection.sock.fileno()]
        connection.sock.close()


def percentiles(latencies: Sequence[float]) -> dict[str, float | None]:
    """In the unit of the latencies; None where there are none."""
    ordered = sorted(latencies)

    def at(share: float) -> float | None:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    return {"p50": at(0.50), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)}


def summary(load: Load, seconds: float) -> dict[str, Any]:
    """JSON: answers a second, statuses, latencies of the answers in seconds, and the CPU seconds that all this took."""
    return {
        "seconds": seconds,
        "statuses": dict(load.statuses),
        "goodput": load.statuses["200"] / seconds,
        **percentiles(load.latencies),
        "cpu": time.process_time(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="http://127.0.0.1:PORT/PATH")
    parser.add_argument("body", type=Path, help="file to send")
    parser.add_argument("--type", default="image/jpeg", help="Content-Type [image/jpeg]")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=4, help="closed loop [4]; open loop: the most at a time")
    parser.add_argument("--rate", type=float, help="requests a second: open loop")
    options = parser.parse_args()
    parts = urlsplit(options.url)
    if parts.hostname not in LOCAL or parts.port is None or not 0 < options.seconds <= 600:
        parser.error("only to this machine, with a port, and for at most 600 seconds")
    body = options.body.read_bytes()
    head = f"POST {parts.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {options.type}\r\nContent-Length: {len(body)}"
    load = Load(parts.hostname, parts.port, head.encode() + b"\r\n\r\n" + body)
    started = time.perf_counter()
    if options.rate is None:
        load.closed(options.connections, options.seconds)
    else:
        load.opened(options.rate, options.seconds, options.connections)
    print(json.dumps(summary(load, time.perf_counter() - started)))


if __name__ == "__main__":
    main()
