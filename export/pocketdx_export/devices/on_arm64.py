"""Runs on the device itself, an ARM64 Python: opens one model and answers as `devices.worker` says.

Of PocketDx it knows the runtime alone, as a phone or a Raspberry Pi does.

    python on_arm64.py onnx|litert FOLDER THREADS
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

_AT_HWCAP, _AT_HWCAP2 = 16, 26
# Linux, arch/arm64/include/uapi/asm/hwcap.h
_HWCAP = {"asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22}
_HWCAP2 = {"sve2": 1, "i8mm": 13, "bf16": 14, "sme": 23}

Run = Callable[[Any], dict[str, Any]]


def main(kind: str, folder: Path, threads: int) -> None:
    """Answer requests until there are no more.

    Args:
        kind: "onnx" or "litert".
        folder: shared with who asks; the model is `model` in it.
        threads: to compute with.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    try:
        run, engine = OPENERS[kind](folder / "model", threads)
        print(json.dumps({"ready": describe(engine)}), file=answers)
        for line in sys.stdin:
            outputs = respond(run, folder, json.loads(line)["shapes"])
            print(json.dumps({"outputs": outputs}), file=answers)
    except Exception as error:  # whatever it is, it is for the other side to say
        print(json.dumps({"error": f"{error}" or type(error).__name__}), file=answers)
        raise


def respond(run: Run, folder: Path, shapes: Sequence[tuple[int, int]]) -> list[tuple[str, list[int]]]:
    """Answer for the pictures in the folder; returns names and shapes of the outputs written."""
    pixels = np.fromfile(folder / "pictures", np.uint8)
    found: list[dict[str, Any]] = []
    start = 0
    for (height, width), same in groupby(map(tuple, shapes)):
        count = len(list(same))
        end = start + count * height * width * 3
        found.append(run(pixels[start:end].reshape(count, height, width, 3)))
        start = end
    outputs = {name: np.concatenate([each[name] for each in found]).astype("<f4") for name in found[0]}
    with (folder / "answers").open("wb") as file:
        for values in outputs.values():
            file.write(np.ascontiguousarray(values).data)
    return [(name, list(values.shape)) for name, values in outputs.items()]


def open_onnx(path: Path, threads: int) -> tuple[Run, dict[str, str]]:
    """PocketDx's own runtime, as it is."""
    import onnxruntime

    from pocketdx_runtime.session import Session

    session = Session.open(path.read_bytes(), "model", threads)
    return lambda pixels: session.run(pixels, session.manifest.outputs), {"onnxruntime": onnxruntime.__version__}


def open_litert(path: Path, threads: int) -> tuple[Run, dict[str, str]]:
    """LiteRT on a file of ours: one picture at a time, float32 [1, S, S, 3], 0 to 1 (see `formats.tflite`)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()

    def run(pixels: Any) -> dict[str, Any]:
        rows = []
        for picture in pixels:
            answers = signature(image=picture[np.newaxis].astype(np.float32) / np.float32(255))
            rows.append({name: values.copy() for name, values in answers.items()})
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return run, {}


OPENERS: dict[str, Callable[[Path, int], tuple[Run, dict[str, str]]]] = {"onnx": open_onnx, "litert": open_litert}


def describe(engine: dict[str, str]) -> dict[str, Any]:
    """What it runs on: instruction sets as the kernel (here: qemu) tells a program, and versions."""
    auxiliary = ctypes.CDLL(None).getauxval
    auxiliary.restype = ctypes.c_ulong
    words = ((auxiliary(_AT_HWCAP), _HWCAP), (auxiliary(_AT_HWCAP2), _HWCAP2))
    return {
        "architecture": platform.machine(),
        "flags": [name for word, bits in words for name, bit in bits.items() if word >> bit & 1],
        "software": {"python": platform.python_version(), "numpy": np.__version__, **engine},
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
