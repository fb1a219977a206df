"""Every file of a bundle on every device that is set up here: are the answers right, and how long did it take?

Simulated devices (docs/devices.md) compute what the real ones compute. Their times are those of this machine, and say
how long a check takes, not how fast a phone is. The pictures are of the network's size, drawn at random from the test
split; the reference is the network in PyTorch on the same pixels.

    pocketdx devices setup arm64 node browser
    python benchmarks/devices.py bundle --against run --data chest-xray
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from measure import circumstances, table
from numpy.typing import NDArray

from pocketdx_export.backends import Backend, BackendError, Outputs, Pixels, backends_for
from pocketdx_runtime.manifest import Manifest

HEAD = (
    "file",
    "device",
    "ready after, s",
    "per picture, ms",
    "logits, max from PyTorch",
    "same top-1",
    "logits, max from onnxruntime here",
)


@dataclass(frozen=True)
class Cell:
    """One file on one device.

    Attributes:
        file: its name.
        backend: the device's name.
        start: seconds until it was ready.
        seconds: for all pictures.
        answers: by output, float32 [N, ...]; empty where it did not run.
        why: why it did not run.
    """

    file: str
    backend: str
    start: float
    seconds: float
    answers: Outputs
    why: str = ""


def measure(path: Path, manifest: Manifest, backend: Backend, pictures: Sequence[Pixels]) -> Cell:
    """Open a file on a device and run all pictures, once: it is the answers that count."""
    started = time.perf_counter()
    try:
        with backend.opened(path, manifest) as run:
            ready = time.perf_counter()
            answers = run(pictures)
            done = time.perf_counter()
    except BackendError as problem:
        return Cell(path.name, backend.name, 0, 0, {}, str(problem))
    return Cell(path.name, backend.name, ready - started, done - ready, answers)


def measured(bundle: Path, pictures: Sequence[Pixels], names: Sequence[str]) -> Iterator[Cell]:
    """All cells, file by file."""
    from pocketdx_export.bundle import Bundle

    opened = Bundle.open(bundle)
    for target, path in opened.files:
        manifest = replace(opened.manifest, precision=target.precision)
        for backend in backends_for(target.format):
            if not names or backend.name in names:
                yield measure(path, manifest, backend, pictures[: backend.most])


def row(cell: Cell, native: Cell, expected: NDArray[np.float32]) -> list[str]:
    """Of the table; `native` is the same file on onnxruntime here, `expected` PyTorch's logits."""
    if not cell.answers:
        return [cell.file, cell.backend, *["not run"] * (len(HEAD) - 2)]
    logits = cell.answers["logits"]
    wanted = expected[: len(logits)]
    here = native.answers["logits"][: len(logits)] if native.answers else np.full_like(logits, np.nan)
    return [
        cell.file,
        cell.backend,
        f"{cell.start:.1f}",
        f"{cell.seconds / len(logits) * 1000:.0f}",
        f"{np.abs(logits - wanted).max():.1e}",
        f"{(logits.argmax(1) == wanted.argmax(1)).mean():.1%}",
        f"{np.abs(logits - here).max():.1e}",
    ]


def kernels(cells: Sequence[Cell]) -> str:
    """Whether the logits of each file are the same to the last bit on all ARM processors."""
    lines = []
    for file, of_file in groupby(cells, key=lambda cell: cell.file):
        logits = [cell.answers["logits"] for cell in of_file if cell.backend.startswith("arm64-") and cell.answers]
        if len(logits) > 1:
            same = all(np.array_equal(each, logits[0]) for each in logits[1:])
            apart = max(float(np.abs(each - logits[0]).max()) for each in logits[1:])
            verdict = "the same to the last bit" if same else f"up to {apart:.1e} apart"
            lines.append(f"- {file}: logits of the {len(logits)} ARM processors are {verdict}")
    return "\n".join(lines)


def drawn_pictures(
    run_folder: Path, data: Path, cache: Path | None, count: int, seed: int
) -> tuple[list[Pixels], NDArray[np.float32]]:
    """Pictures uint8 [S, S, 3] drawn from the test split, and PyTorch's logits float32 [count, C] for them."""
    import torch

    from pocketdx_export.deploy import DeployModule
    from pocketdx_train.evaluation import choose_set
    from pocketdx_train.run import Run

    run = Run.open(run_folder)
    record = run.record
    chosen = choose_set(data, record.labels, record.preprocessing.size, split=None, run=run, cache=cache)
    positions = np.random.default_rng(seed).permutation(chosen.positions)[:count]
    pictures = [np.array(chosen.data.pixels[position]) for position in positions]
    module = DeployModule(run.network(), record.temperature).eval()
    with torch.inference_mode():
        logits = [module(torch.from_numpy(picture)[None])[0].numpy() for picture in pictures]
    return pictures, np.concatenate(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", type=Path, metavar="RUN", required=True, help="the run it was exported from")
    parser.add_argument("--data", type=Path, required=True, help="labelled images, as for training")
    parser.add_argument("--cache", type=Path, help="folder of decoded images")
    parser.add_argument("--backend", action="append", default=[], help="only this device; may be repeated")
    parser.add_argument("--count", type=int, default=32, help="pictures, of which a slow device gets 32 at most [32]")
    parser.add_argument("--seed", type=int, default=0, help="of the draw [0]")
    options = parser.parse_args()
    pictures, expected = drawn_pictures(options.against, options.data, options.cache, options.count, options.seed)
    started = time.perf_counter()
    cells = list(measured(options.bundle, pictures, options.backend))
    took = time.perf_counter() - started
    rows = []
    for _, of_file in groupby(cells, key=lambda cell: cell.file):
        group = list(of_file)
        rows += [row(cell, group[0], expected) for cell in group]
    print(table(HEAD, rows), end="\n\n")
    print(kernels(cells))
    for cell in cells:
        if cell.why:
            print(f"- {cell.file} on {cell.backend}: not run: {cell.why}")
    print(f"\n{len(pictures)} pictures; all of it in {took:.0f} s.\n")
    print(circumstances(["torch", "ai-edge-litert"]))


if __name__ == "__main__":
    main()
