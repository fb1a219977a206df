"""Squashing the means of blocks: as near to squashing the pixels as can be, and the same on every machine."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketdx_runtime._formats import blocks
from pocketdx_runtime._formats.blocks import Blocks, estimate, squash

RNG = np.random.default_rng(0)


def means_of(pixels: np.ndarray, side: int) -> np.ndarray:
    """Of blocks, float [H / side, W / side, ...]."""
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels.reshape(height, side, width, side, *pixels.shape[2:]).mean(axis=(1, 3))


def rough_picture(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] with edges, slopes and grain, clear of black and white."""
    steps = RNG.normal(0, 1, (height, width, 3))
    walk = np.cumsum(np.cumsum(steps, 0) / height**0.5, 1) / width**0.5
    grain = RNG.normal(0, 8, (height, width, 3))
    edges = 40 * (np.indices((height, width)).sum(0) // 60 % 2)[..., None]
    return (128 + 20 * walk + grain + edges - 20).clip(20, 235).astype(np.uint8)


@pytest.mark.parametrize(("side", "left"), [(2, 0.9), (4, 0.6), (8, 0.4)])
def test_less_error_is_left_than_by_shrinking_the_means_as_if_they_were_pixels(side: int, left: float) -> None:
    """Whole grey levels are compared: to round is most of what is left of small blocks."""
    pixels = rough_picture(100 * side, 136 * side)
    wanted = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)).astype(float)
    means = Image.fromarray(np.rint(means_of(pixels, side)).astype(np.uint8))
    ours = np.asarray(squash(means, Blocks(side, 136 * side, 100 * side), 32))
    plain = np.asarray(means.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(ours - wanted).mean() < left * np.abs(plain - wanted).mean()


def test_no_other_weights_do_better_on_random_walks() -> None:
    """What is best by the theory is best by trial: any nudge of the weights makes the error larger."""
    length, side, size = 240, 4, 12
    first, weights = estimate(length, side, size)
    walks = np.cumsum(RNG.normal(0, 1, (40_000, length)), axis=1)
    kept = walks.reshape(-1, length // side, side).mean(2)
    starts, filters = blocks._bilinear(length, size)
    row = 5
    wanted = walks[:, starts[row] : starts[row] + filters.shape[1]] @ filters[row]
    near = kept[:, first[row] : first[row] + weights.shape[1]]
    least = ((near @ weights[row] - wanted) ** 2).mean()
    for _ in range(20):
        nudge = RNG.normal(0, 0.01, weights.shape[1])
        assert ((near @ (weights[row] + nudge - nudge.mean()) - wanted) ** 2).mean() > least


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 3000), side=st.sampled_from([2, 4, 8]), size=st.integers(1, 64))
def test_weights_add_up_to_one_and_reach_no_block_that_is_not_there(length: int, side: int, size: int) -> None:
    count = -(-length // side)
    size = min(size, count)
    first, weights = estimate(length, side, size)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-9)
    assert first.min() >= 0
    assert first.max() + weights.shape[1] <= count
    assert (np.diff(first) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(64, 900),
    height=st.integers(64, 900),
    side=st.sampled_from([2, 4, 8]),
    size=st.integers(1, 21),
    grey=st.booleans(),
    extreme=st.booleans(),
    seed=st.integers(0, 99),
)
def test_float32_adds_without_an_error_so_that_every_machine_finds_the_same(
    width: int, height: int, side: int, size: int, grey: bool, extreme: bool, seed: int
) -> None:
    """The same in float64, in one product, in another order: to the bit, at the most that pixels can be too."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-height // side), -(-width // side)
    size = min(size, rows, columns)
    shape = (rows, columns) if grey else (rows, columns, 3)
    pixels = rng.choice([0, 255], shape, p=[0.1, 0.9]) if extreme else rng.integers(0, 256, shape)
    ours = np.asarray(squash(Image.fromarray(pixels.astype(np.uint8)), Blocks(side, width, height), size))

    def matrix(length: int, count: int, parts: int) -> np.ndarray:
        first, weights = estimate(length, side, size)
        dense = np.zeros((size, count))
        for row, start in enumerate(first):
            sums = np.rint(np.append(0, weights[row]).cumsum() * parts)
            dense[row, start : start + weights.shape[1]] = np.diff(sums) / parts
        return dense[:, ::-1]

    between = np.rint(16 * np.tensordot(matrix(height, rows, 4096), pixels[::-1], (1, 0))) / 16
    levels = np.moveaxis(np.tensordot(matrix(width, columns, 2048), between[:, ::-1], (1, 1)), 0, 1)
    np.testing.assert_array_equal(ours, np.floor(levels + 0.5).clip(0, 255))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
def test_what_is_flat_stays_as_it_is(mode: str, level: int) -> None:
    means = Image.new(mode, (302, 226), (level,) * 3 if mode == "RGB" else level)
    squashed = squash(means, Blocks(4, 1207, 901), 32)
    assert (squashed.mode, squashed.size) == (mode, (32, 32))
    assert (np.asarray(squashed) == level).all()


SPINNING = """
import time
from PIL import Image
from pocketdx_runtime._formats.blocks import Blocks, squash
means = Image.new("RGB", (2600, 1340))
squash(means, Blocks(2, 5200, 2680), 224)
together, alone = time.process_time(), time.thread_time()
for _ in range(10):
    squash(means, Blocks(2, 5200, 2680), 224)
print((time.process_time() - together) / (time.thread_time() - alone))
"""


def test_no_second_thread_works_or_waits_for_work() -> None:
    done = subprocess.run([sys.executable, "-c", SPINNING], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 1.1
