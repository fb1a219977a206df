"""How a device's process is talked with, shown with processes that are no device at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pocketdx_export.backends import BackendError, Pixels
from pocketdx_export.devices.worker import Limits, Worker, requests, worker

READY = "import json, os, sys, time\nimport numpy as np\nprint(json.dumps({'ready': {'cpu': 'none'}}), flush=True)\n"
# Answers with the mean of each picture, as an output of one column.
MEANS = """
for line in sys.stdin:
    shapes = json.loads(line)["shapes"]
    pixels, means, start = np.fromfile("pictures", np.uint8), [], 0
    for height, width in shapes:
        end = start + height * width * 3
        means.append(pixels[start:end].mean())
        start = end
    np.array(means, "<f4").tofile("answers")
    print(json.dumps({"outputs": [["mean", [len(means), 1]]]}), flush=True)
"""


PATIENT = Limits(start=60, picture=20)


@contextmanager
def process(code: str, folder: Path, limits: Limits = PATIENT) -> Iterator[Worker]:
    command = [sys.executable, "-c", f"import os\nos.chdir({str(folder)!r})\n{code}"]
    with worker("device", command, environment={}, folder=folder, limits=limits) as run:
        yield run


def grey(level: int, height: int = 4, width: int = 5) -> Pixels:
    return np.full((height, width, 3), level, np.uint8)


def test_pictures_go_there_and_answers_come_back_in_order(tmp_path: Path) -> None:
    pictures = [grey(level, 3 + level % 4, 2 + level % 3) for level in range(21)]
    with process(READY + MEANS, tmp_path) as run:
        assert run.about == {"cpu": "none"}
        assert run(pictures)["mean"].tolist() == [[level] for level in range(21)]
        # A view that is not contiguous holds the same pixels.
        assert run([grey(7)[::2, ::-1]])["mean"].tolist() == [[7]]


def test_few_pictures_are_sent_at_once_and_fewer_large_ones() -> None:
    assert [len(batch) for batch in requests([grey(0)] * 20)] == [8, 8, 4]
    large = np.broadcast_to(np.uint8(0), (3000, 3000, 3))
    assert [len(batch) for batch in requests([large] * 3)] == [1, 1, 1]
    assert list(requests([])) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit('no such engine')", r"failed with status 1 \(start\): no such engine"),
        ("import os\nos.kill(os.getpid(), 11)", r"was ended by signal 11 \(start\)"),
        ('print(\'{"error": "no memory\\\\nleft"}\', flush=True)', r"no memory\\nleft"),
        ("print('hello', flush=True)", "said 'hello'"),
        ("import time\ntime.sleep(60)", "no answer in 1 s"),
    ],
)
def test_a_process_that_does_not_get_ready_is_an_error_of_one_line(tmp_path: Path, code: str, message: str) -> None:
    limits = Limits(start=1) if "sleep" in code else Limits(start=60)
    with pytest.raises(BackendError, match=message) as failed, process(code, tmp_path, limits):
        pass
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.stdin.readline(); os.abort()", r"was ended by signal 6 \(run\)"),
        ('sys.stdin.readline(); print(\'{"error": "bad"}\', flush=True)', "device: bad"),
        ("sys.stdin.readline(); time.sleep(60)", "no answer in 2 s"),
        (MEANS.replace("[len(means), 1]", "[len(means), 2]"), "wrong size"),
        (MEANS.replace("[len(means), 1]", "[1, 1]"), "wrong size"),
    ],
)
def test_a_process_that_fails_at_work_is_an_error_of_one_line(tmp_path: Path, code: str, message: str) -> None:
    limits = Limits(start=60, picture=2 / 3 if "sleep" in code else 20)
    with process(READY + code, tmp_path, limits) as run, pytest.raises(BackendError, match=message) as failed:
        run([grey(1), grey(2)])
    assert "\n" not in str(failed.value)


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(BackendError, match=r"device: .*no-such-program"),
        worker("device", [tmp_path / "no-such-program"], environment={}, folder=tmp_path, limits=Limits()),
    ):
        pass
