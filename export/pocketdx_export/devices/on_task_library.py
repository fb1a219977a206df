"""Runs in the Task library's own environment: opens a `.tflite` file there and answers as `devices.worker` says.

The probabilities are the classifier's scores, the other outputs come from the embedder; pictures go in as they are, and
the library itself resizes and normalises them as the file's metadata says.

    python on_task_library.py FOLDER THREADS
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pocketdx_export.devices.on_arm64 import Run, respond

OUTPUTS = ("probabilities", "embedding", "logits")
"""In the file's order; `deploy.FIXED_SIZE_OUTPUTS` cannot be imported here."""


def main(folder: Path, threads: int) -> None:
    """Answer requests until there are no more; `model` in `folder` is the file."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    try:
        run = opened(folder / "model", threads)
        print(json.dumps({"ready": {"architecture": platform.machine(), "software": software()}}), file=answers)
        for line in sys.stdin:
            outputs = respond(run, folder, json.loads(line)["shapes"])
            print(json.dumps({"outputs": outputs}), file=answers)
    except Exception as error:  # whatever it is, it is for the other side to say
        print(json.dumps({"error": f"{error}" or type(error).__name__}), file=answers)
        raise


def opened(path: Path, threads: int) -> Run:
    """The file in an ImageClassifier and an ImageEmbedder."""
    from tflite_support.task import core, processor, vision

    base = core.BaseOptions(file_name=str(path.resolve()), num_threads=threads)
    every = processor.ClassificationOptions(max_results=-1)
    classifier = vision.ImageClassifier.create_from_options(
        vision.ImageClassifierOptions(base_options=base, classification_options=every)
    )
    embedder = vision.ImageEmbedder.create_from_options(vision.ImageEmbedderOptions(base_options=base))

    def run(pixels: Any) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {name: [] for name in OUTPUTS}
        for picture in pixels:
            image = vision.TensorImage.create_from_array(np.ascontiguousarray(picture))
            (scores, *_) = classifier.classify(image).classifications
            in_order = sorted(scores.categories, key=lambda category: category.index)
            rows["probabilities"].append(np.array([category.score for category in in_order], np.float32))
            for embedding in embedder.embed(image).embeddings:
                name = OUTPUTS[embedding.output_index]
                if name != "probabilities":
                    rows[name].append(np.array(embedding.feature_vector.value, np.float32))
        return {name: np.stack(found) for name, found in rows.items()}

    return run


def software() -> dict[str, str]:
    """Versions."""
    return {"python": platform.python_version(), "numpy": np.__version__, "tflite-support": "0.4.4"}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
