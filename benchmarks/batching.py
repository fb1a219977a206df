"""Does it pay to collect requests into batches on a CPU? CPU time per image of the graph, for batches of 1 to 16.

Batching gains on a processor where a larger matrix is cheaper per row, and where waiting for the others costs nothing.
Here each size is timed on one thread, and in two threads side by side as the server runs them; CPU time, so that other
work on the machine counts less. A batch also makes its first image wait for the last: that cost is not in the table.

    python benchmarks/batching.py bundle/model.fp32.onnx
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from measure import circumstances, table

from pocketdx_runtime import Model, granted_cpus

SIZES = (1, 2, 4, 8, 16)
OUTPUTS = ["probabilities"]


def alone(model: Model, batch: int, images: int) -> tuple[float, float]:
    """CPU and wall seconds per image, on one thread."""
    side = model.manifest.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    model.run(pixels, OUTPUTS)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(images // batch):
        model.run(pixels, OUTPUTS)
    done = images // batch * batch
    return (time.process_time() - cpu) / done, (time.perf_counter() - wall) / done


def side_by_side(model: Model, batch: int, images: int) -> tuple[float, float]:
    """CPU and wall seconds per image, on as many threads as there are CPUs."""
    threads = [threading.Thread(target=alone, args=(model, batch, images)) for _ in range(granted_cpus())]
    cpu, wall = time.process_time(), time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    done = (images // batch * batch + batch) * len(threads)  # one batch to warm up
    return (time.process_time() - cpu) / done, (time.perf_counter() - wall) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported .onnx file")
    parser.add_argument("--images", type=int, default=160, help="of each measurement [160]")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each size [5]")
    options = parser.parse_args()
    model = Model(options.model, threads=1).load()
    found: dict[int, list[tuple[float, ...]]] = {size: [] for size in SIZES}
    for _ in range(options.rounds):
        for size in SIZES:
            measured = (*alone(model, size, options.images), *side_by_side(model, size, options.images))
            found[size].append(measured)
    rows = []
    for size, rounds in found.items():
        medians = [statistics.median(each) * 1000 for each in zip(*rounds, strict=True)]
        pairs = zip(found[1], rounds, strict=True)
        gain = statistics.median(one[2] / batch[2] for one, batch in pairs)
        rows.append([str(size), *(f"{each:.2f}" for each in medians), f"{gain:.2f}"])
    head = ["batch", "one thread: CPU ms", "wall ms", f"{granted_cpus()} threads: CPU ms", "wall ms", "CPU gain over 1"]
    print(table(head, rows), end="\n\n")
    print(f"{model.manifest.architecture}, {model.manifest.preprocessing.size} px; per image; medians of the rounds.\n")
    print(circumstances())


if __name__ == "__main__":
    main()
