"""What every test may ask for: the real images, and the `--slow` switch."""

import os
import signal
from pathlib import Path

import pytest

# Before anything loads OpenMP, here and in the processes that tests start: idle threads sleep instead of spinning,
# or several of these processes on two cores take each other's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Where `make` sets the simulated devices up.
os.environ.setdefault("POCKETDX_CACHE", str(Path(__file__).resolve().parents[1] / ".cache" / "pocketdx"))

# What a shell starts in the background ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images; the test is skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not here: expected ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of the pretrained weights; the test is skipped where it is absent."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip("the pretrained weights are not here: expected ../shared/weights beside the checkout")
    return folder
