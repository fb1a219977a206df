"""A device that fails says so in one line, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pocketdx_export.backends import BackendError, Pixels, arm64, web
from pocketdx_export.devices.worker import Limits, Worker
from pocketdx_runtime.manifest import Manifest

from .conftest import available


@pytest.fixture
def damaged(fp32: Path, tmp_path: Path) -> Path:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(fp32.read_bytes()[:-5000])
    return path


@pytest.mark.parametrize("name", ["node", "browser-2", pytest.param("arm64-cortex-a76", marks=pytest.mark.slow)])
def test_a_damaged_file_is_refused_in_one_line(name: str, damaged: Path, manifest: Manifest) -> None:
    backend = available(name)
    with pytest.raises(BackendError) as refused, backend.opened(damaged, manifest):
        pass
    assert "\n" not in str(refused.value)
    assert "ONNX" in str(refused.value) or "model" in str(refused.value)


@pytest.mark.slow
def test_an_emulated_process_that_wants_too_much_memory_is_an_error(fp32: Path, manifest: Manifest) -> None:
    available("arm64-cortex-a76")
    small = Limits(memory=64 << 20)
    with (
        pytest.raises(BackendError, match=r"cortex-a76 \(onnx\): ") as failed,
        arm64.opened(fp32, manifest, cpu="cortex-a76", limits=small),
    ):
        pass
    assert "\n" not in str(failed.value)


def test_what_takes_too_long_is_ended(fp32: Path, manifest: Manifest) -> None:
    available("arm64-cortex-a76")
    with (
        pytest.raises(BackendError, match="no answer in"),
        arm64.opened(fp32, manifest, cpu="cortex-a76", limits=Limits(start=0.05)),
    ):
        pass
    assert not list(processes("on_arm64.py"))


def test_a_browser_that_is_killed_is_an_error(fp32: Path, manifest: Manifest, pictures: list[Pixels]) -> None:
    available("browser-2")
    with web.opened(fp32, manifest, where="browser", threads=2) as run:
        assert isinstance(run, Worker)
        assert len(run(pictures[:1])["logits"]) == 1
        children = list(processes(str(run.folder / "profile")))
        assert children
        threading.Timer(0.3, lambda: [os.kill(each, signal.SIGKILL) for each in children]).start()
        large = [np.zeros((2000, 2000, 3), np.uint8)] * 200
        with pytest.raises(BackendError, match="browser"):
            run(large)
    wait_until_gone(str(run.folder / "profile"))


def test_node_and_the_browser_end_with_their_context(fp32: Path, manifest: Manifest) -> None:
    available("browser-2")
    with web.opened(fp32, manifest, where="browser", threads=2) as run:
        assert isinstance(run, Worker)
        folder = run.folder
        assert list(processes(str(folder)))
    wait_until_gone(str(folder))
    assert not folder.exists()


def processes(word: str) -> list[int]:
    """Of those below this one, which have `word` on their command line."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (each / "cmdline").read_bytes() and is_ours(int(each.name)):
                found.append(int(each.name))
        except OSError:  # ended meanwhile
            continue
    return found


def is_ours(process: int) -> bool:
    """Whether it descends from this process; another matrix may run beside these tests."""
    while process > 1:
        if process == os.getpid():
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def wait_until_gone(word: str) -> None:
    for _ in range(100):
        if not processes(word):
            return
        time.sleep(0.1)
    raise AssertionError(f"still running: {processes(word)}")
