"""Cells on devices run beside those of this process."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pocketdx_export.backends import BackendError
from pocketdx_export.devices.worker import Limits, worker
from pocketdx_export.parity.together import together

# Says that it is ready and then never answers.
SILENT = "import sys; print('{\"ready\": {}}', flush=True); sys.stdin.read(1); import time; time.sleep(600)"


def test_results_come_in_the_order_of_the_items() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (number % 3))
        return number * number

    assert together(work, range(9), lambda number: number % 2 == 0) == [number * number for number in range(9)]


def test_what_is_not_apart_stays_on_the_calling_thread() -> None:
    here = threading.current_thread()
    ran = together(lambda _: threading.current_thread() is here, range(6), lambda number: number >= 3)
    assert ran == [True] * 3 + [False] * 3


def test_a_fault_is_raised_and_what_waits_is_given_up() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.05)
        if number == 0:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        together(work, range(200), lambda number: number > 0)
    assert len(begun) < 100


def test_ctrl_c_ends_the_devices_that_are_at_work(tmp_path: Path) -> None:
    ready = threading.Event()
    ended: list[str] = []

    def work(number: int) -> None:
        if number == 0:  # the calling thread
            assert ready.wait(30)
            raise KeyboardInterrupt
        limits = Limits(start=60, picture=600)
        with worker("silent", [sys.executable, "-c", SILENT], environment={}, folder=tmp_path, limits=limits) as run:
            ready.set()
            try:
                run([np.zeros((2, 2, 3), np.uint8)])
            except BackendError as problem:
                ended.append(str(problem))

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        together(work, range(2), lambda number: number > 0)
    assert time.monotonic() - started < 60  # not the ten minutes for which it would have been waited
    assert len(ended) == 1
