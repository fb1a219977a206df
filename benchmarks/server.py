"""The server under load, beside the model in this process and beside other servers with the same model.

    python benchmarks/server.py bundle/model.fp32.onnx
    python benchmarks/server.py bundle/model.fp32.onnx --against run --litserve build/litserve --seconds 20 --rounds 5 \
        --requests 10000 --malformed 10000

Everything runs on 127.0.0.1, load and servers on the same CPUs, the servers one at a time and taking turns. LitServe
gets an environment of its own in the folder of --litserve, made on first use. "in process" is `Model.diagnose` on as
many threads as there are CPUs, without HTTP and without the load generator, which costs the servers some of the CPU.
CPU time an answer holds on a busy machine as well.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from load import percentiles
from measure import circumstances, table
from PIL import Image
from servers import CONNECTIONS, Payload, litserve, ours, plain
from synthetic_photo import photo, small_jpeg

from pocketdx_runtime import Model, granted_cpus

OURS, LITSERVE, PLAIN, INSIDE = "PocketDx", "LitServe + onnxruntime", "FastAPI + torchvision + PyTorch", "in process"
SMALL, LARGE = "224 px JPEG", "12-megapixel photo"
SHARES = (0.7, 0.5)
MOST_SECONDS = 4.0
STAGES = ("throughput", "start", "paced", "slow", "memory", "malformed")


def in_process(model: Model, data: bytes, seconds: float) -> tuple[float, float]:
    """Diagnoses a second on all CPUs, and CPU seconds of each."""
    model.diagnose([data])
    counts = [0] * granted_cpus()
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            model.diagnose([data])
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    started, cpu = time.perf_counter(), time.process_time()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(counts) / (time.perf_counter() - started), (time.process_time() - cpu) / sum(counts)


def throughput(
    model: Model, payload: Payload, servers: dict[str, Callable[[Payload], Any]], seconds: float, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Answers a second and CPU seconds of each, by server, one pair for each round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (INSIDE, *servers)}
    for _ in range(rounds):
        found[INSIDE].append(in_process(model, payload.data, seconds))
        for name, start in servers.items():
            with start(payload) as server:
                server.load(payload, 1)
                before = server.cpu
                outcome = server.load(payload, seconds)
                used = server.cpu - before
            if set(outcome["statuses"]) != {"200"}:
                raise SystemExit(f"error: {name} answered {outcome['statuses']}")
            found[name].append((outcome["goodput"], used / outcome["statuses"]["200"]))
    return found


def show_throughput(payload: Payload, found: dict[str, list[tuple[float, float]]]) -> str:
    rows = []
    for name, rounds in found.items():
        pairs = list(zip(found[OURS], rounds, strict=True))
        faster = statistics.median(us[0] / them[0] for us, them in pairs)
        cheaper = statistics.median(them[1] / us[1] for us, them in pairs)
        rate, cpu = (statistics.median(each) for each in zip(*rounds, strict=True))
        rows.append([name, f"{rate:.1f}", f"{faster:.2f}", f"{cpu * 1000:.2f}", f"{cheaper:.2f}"])
    return table([payload.name, "answers a second", "PocketDx / this", "CPU ms an answer", "this / PocketDx"], rows)


def opened_in_process(model: Model, data: bytes, rate: float, seconds: float) -> dict[str, Any]:
    """As load.py's open loop, for `in_process`: diagnoses due at fixed times wait for one of its threads."""

    def late(due: float) -> float:
        model.diagnose([data])
        return time.perf_counter() - due

    waiting = []
    cpu, started = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(granted_cpus()) as pool:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            waiting.append(pool.submit(late, due))
    busy = (time.process_time() - cpu) / (time.perf_counter() - started)
    return {**percentiles([each.result() for each in waiting]), "busy": busy}


def paced(start: Callable[[Payload], Any], model: Model, payload: Payload, seconds: float, rounds: int) -> str:
    """Latency at shares of the most, through the server and in process, taking turns.

    The most is looked at just before: a minute later the same machine may be half as fast, and 70 % of what it did then
    all that it can do.
    """
    found: dict[tuple[str, float], list[tuple[float, dict[str, Any]]]] = {}
    for _, share in itertools.product(range(rounds), SHARES):
        most, _ = in_process(model, payload.data, MOST_SECONDS)
        outcome = opened_in_process(model, payload.data, share * most, seconds)
        found.setdefault((INSIDE, share), []).append((most, outcome))
        with start(payload) as server:
            server.load(payload, 1)
            most = server.load(payload, MOST_SECONDS)["goodput"]
            before = server.cpu
            outcome = server.load(payload, seconds, connections=256, rate=share * most)
            outcome["busy"] = (server.cpu - before + outcome["cpu"]) / outcome["seconds"]
        if set(outcome["statuses"]) != {"200"}:
            raise SystemExit(f"error: answered {outcome['statuses']}")
        found.setdefault((OURS, share), []).append((most, outcome))
    head = ["of the most", "", "the most", "CPUs busy", "p50 / p95 / p99, ms", "p99 / p50, each round", "median"]
    return table(head, [_paced_row(*key, each) for key, each in found.items()])


def _paced_row(name: str, share: float, rounds: list[tuple[float, dict[str, Any]]]) -> list[str]:
    mosts, outcomes = zip(*rounds, strict=True)
    ratios = sorted(each["p99"] / each["p50"] for each in outcomes)
    median = {key: statistics.median(each[key] for each in outcomes) for key in ("p50", "p95", "p99", "busy")}
    return [
        f"{share:.0%}",
        name,
        f"{min(mosts):.0f} to {max(mosts):.0f}",
        f"{median['busy'] / granted_cpus():.0%}",
        " / ".join(f"{median[key] * 1000:.1f}" for key in ("p50", "p95", "p99")),
        ", ".join(f"{each:.1f}" for each in ratios),
        f"{statistics.median(ratios):.1f}",
    ]


def slow_clients(start: Callable[[Payload], Any], payload: Payload, count: int = 256) -> str:
    """Connections that send a header and then a byte a second, and one more that does not."""
    head = f"POST /v1/diagnose HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(payload.data)}"
    with start(payload) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
        for sock in slow:
            sock.sendall(head.encode() + b"\r\n\r\n" + payload.data[:1])
        times = []
        for number in range(1, 6):
            for sock in slow:
                sock.sendall(payload.data[number : number + 1])
            started = time.perf_counter()
            status = server.post(payload.data)
            times.append((status, round((time.perf_counter() - started) * 1000, 1)))
            time.sleep(1)
        for sock in slow:
            sock.close()
    return f"{count} slow uploads, one byte a second; the next client's status and milliseconds: {times}"


def memory(start: Callable[[Payload], Any], payloads: list[Payload], requests: int) -> str:
    """Resident memory after 100 requests and after many, both payloads mixed 20 to 1."""
    small, large = payloads
    with start(small) as server:

        def send(count: int) -> None:
            todo = iter([large if number % 20 == 0 else small for number in range(count)])
            lock = threading.Lock()

            def work() -> None:
                while True:
                    with lock:
                        each = next(todo, None)
                    if each is None:
                        return
                    server.post(each.data)

            threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()

        send(100)
        first = server.rss
        send(requests - 100)
        last = server.rss
    return f"Memory after 100 requests {first:.1f} MB, after {requests} {last:.1f} MB: {last / first - 1:+.1%}"


def mutant(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """A body that is cut, flipped, spliced, random, or says that it is something else; and its Content-Type."""
    body = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(body) or 1)
        match dice.randrange(6):
            case 0:
                del body[at:]
            case 1:
                body[at : at + 1] = dice.randbytes(1)
            case 2:
                body[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
            case 3:
                body[at:at] = dice.randbytes(dice.randint(1, 64))
            case 4:
                del body[at : at + dice.randint(1, 64)]
            case 5:
                body = bytearray(dice.randbytes(dice.randint(0, 2000)))
    types = ["image/jpeg", "application/octet-stream", "multipart/form-data; boundary=b", "application/dicom", "a/b"]
    return bytes(body), dice.choices(types, [6, 2, 1, 1, 1])[0]


def malformed(start: Callable[[Payload], Any], payload: Payload, count: int) -> str:
    dice = random.Random(0)
    picture = Image.open(io.BytesIO(payload.data))
    kinds = []
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        out = io.BytesIO()
        picture.save(out, kind)
        kinds.append(out.getvalue())
    bomb = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(bomb, "PNG")
    statuses: Counter[int] = Counter()
    with start(payload) as server:

        def send(number: int) -> None:
            for _ in range(number):
                body, media_type = mutant(dice.choice([*kinds, bomb.getvalue()[:50_000]]), dice)
                statuses[server.post(body, media_type)] += 1
            statuses[server.post(bomb.getvalue(), "image/png")] += 1

        send(max(100, count // 10))
        before = server.rss
        send(count)
        after = server.rss
        answered = server.post(payload.data)
    return (
        f"{sum(statuses.values())} malformed bodies: {dict(sorted(statuses.items()))}; memory {before:.1f} -> "
        f"{after:.1f} MB ({after / before - 1:+.1%}); the next good request: {answered}"
    )


def start_up(start: Callable[[Payload], Any], payload: Payload, rounds: int) -> str:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        with start(payload):
            times.append(time.perf_counter() - started)
    return f"From start to the first answer: median {statistics.median(times):.2f} s, slowest {max(times):.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported .onnx file")
    parser.add_argument("--against", type=Path, metavar="RUN", help="also serve the run's network as tutorials do")
    parser.add_argument("--litserve", type=Path, metavar="FOLDER", help="also LitServe, from an environment in FOLDER")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement [4]")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server [3]")
    parser.add_argument("--requests", type=int, default=2000, help="for the memory [2000]")
    parser.add_argument("--malformed", type=int, default=1000, help="bodies [1000]")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this [all]")
    options = parser.parse_args()
    model = Model(options.model, threads=1).load()
    servers = {OURS: ours(options.model)}
    if options.litserve:
        servers[LITSERVE] = litserve(options.litserve, options.model)
    if options.against:
        servers[PLAIN] = plain(options.against)
    with tempfile.TemporaryDirectory() as folder:
        payloads = [
            Payload.make(Path(folder), SMALL, small_jpeg()),
            Payload.make(Path(folder), LARGE, photo(0, detail=0.0)),
        ]
        small = payloads[0]
        start = servers[OURS]

        def compared(payload: Payload) -> str:
            return f"{show_throughput(payload, throughput(model, payload, servers, options.seconds, options.rounds))}\n"

        stages: list[tuple[str, Callable[[], str]]] = [
            *(("throughput", partial(compared, each)) for each in payloads),
            ("start", lambda: f"- {start_up(start, small, max(3, options.rounds))}"),
            ("paced", lambda: f"{paced(start, model, small, max(5.0, options.seconds), options.rounds)}\n"),
            ("slow", lambda: f"- {slow_clients(start, small)}"),
            ("memory", lambda: f"- {memory(start, payloads, options.requests)}"),
            ("malformed", lambda: f"- {malformed(start, small, options.malformed)}"),
        ]
        for name, stage in stages:
            if name in (options.stage or STAGES):
                print(stage(), flush=True)
    print(f"\n{options.seconds:g} s a measurement, {options.rounds} rounds, taking turns; medians.\n")
    print(circumstances(["fastapi", "uvicorn", "uvloop", "torch"]))


if __name__ == "__main__":
    main()
