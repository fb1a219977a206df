"""A load generator: POSTs one body over and over from a process of its own, and says what came back.

Closed loop (--connections): each connection sends its next request when it has its answer; this finds the most that a
server can do. Open loop (--rate): requests are due at fixed times whatever the server does, and a latency counts from
the time when its request was due, so that a slow server cannot hide behind a client that waits for it ("coordinated
omission"). Only to this machine, for at most --seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 60.0
LOCAL = ("127.0.0.1", "localhost", "::1")


class Connection(asyncio.Protocol):
    """One keep-alive connection. Reads a status and a Content-Length, as all servers compared here send them."""

    def __init__(self) -> None:
        self.open = True
        self._buffer = bytearray()
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed"))

    async def ask(self, request: bytes) -> int:
        """Status of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._buffer[:end]).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0] or 0)
        if len(self._buffer) >= end + 4 + length:
            del self._buffer[: end + 4 + length]
            if b"\r\nconnection: close" in head:
                self.open = False
            self._answer.set_result(int(head.split(b" ", 2)[1]))


class Load:
    """What was sent and what came back."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._address = (host, port)
        self._request = request
        self._free: list[Connection] = []
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        return made

    async def once(self, due: float) -> None:
        """One request and its answer."""
        try:
            async with asyncio.timeout(PATIENCE):
                connection = await self._connection()
                status = await connection.ask(self._request)
        except (OSError, TimeoutError) as error:
            self.statuses[type(error).__name__] += 1
            return
        self.statuses[str(status)] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - due)
        self._free.append(connection)

    async def closed(self, connections: int, seconds: float) -> None:
        end = time.perf_counter() + seconds

        async def go_on() -> None:
            while (now := time.perf_counter()) < end:
                await self.once(now)

        await asyncio.gather(*(go_on() for _ in range(connections)))

    async def opened(self, rate: float, seconds: float, most: int) -> None:
        tasks: set[asyncio.Task[None]] = set()
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if len(tasks) >= most:
                self.statuses["not sent"] += 1  # more are on their way than the client may have
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self.once(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


def summary(load: Load, seconds: float) -> dict[str, Any]:
    """JSON: answers a second, statuses, and latencies of the answers in seconds."""
    ordered = sorted(load.latencies)

    def at(share: float) -> float | None:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    return {
        "seconds": seconds,
        "statuses": dict(load.statuses),
        "goodput": load.statuses["200"] / seconds,
        "p50": at(0.50),
        "p95": at(0.95),
        "p99": at(0.99),
        "max": ordered[-1] if ordered else None,
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
    if options.rate is None:
        work: Coroutine[Any, Any, None] = load.closed(options.connections, options.seconds)
    else:
        work = load.opened(options.rate, options.seconds, options.connections)
    started = time.perf_counter()
    try:
        import uvloop

        uvloop.run(work)
    except ImportError:
        asyncio.run(work)
    print(json.dumps(summary(load, time.perf_counter() - started)))


if __name__ == "__main__":
    main()
