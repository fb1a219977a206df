"""Squash a picture of which only the means of its blocks are known: what a JPEG decoded at a reduced scale gives.

To shrink the means as if they were the pixels blurs twice. Here each value of the result is the best linear estimate of
what the pixels would have given, by ordinary kriging from blocks (Journel and Huijbregts, Mining Geostatistics, 1978;
Kyriakidis, Geographical Analysis 36(3), 2004) with a linear variogram: pixels differ the more, the further apart they
are. That has no parameter, and takes no more neighbours than the filter itself.

Weights and what they weigh are rounded so that sums of them in float32 are exact: every machine finds the same pixels,
in whatever order its BLAS adds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats: TypeAlias = npt.NDArray[np.float32]

# Parts of 1 in the weights of the two passes, and of a grey level between them. Powers of two, and so few that no sum
# needs more than the 24 bits of a float32.
_DOWN, _BETWEEN, _ACROSS = 4096, 16, 2048

# Rows and columns of the result whose weights are multiplied as one small dense matrix, and rows that are turned to
# floats and multiplied while they are in the cache: the fastest of those tried, of 4 to 16 and 4 to 224.
_BAND, _STRIP = 4, 32

# Multiplications; from twice as many OpenBLAS calls on its threads, which then spin beside those of the model.
_ONE_THREAD = 2**18


class Blocks(NamedTuple):
    """What each pixel of a scaled picture is the mean of: ``side`` x ``side`` of ``width`` x ``height`` pixels."""

    side: int
    width: int
    height: int


class _Band(NamedTuple):
    """A few rows of weights: of the result's ``rows``, over the blocks of ``span``."""

    rows: slice
    span: slice
    weights: Floats


def squash(means: Image.Image, blocks: Blocks, size: int) -> Image.Image:
    """Nearly what Pillow's bilinear, antialiased resize makes of the pixels themselves.

    Args:
        means: mode ``L`` or ``RGB``; the last of a row or column may reach beyond the picture's edge.
        blocks: what they are the means of.
        size: side of the result, pixels; at most that of ``means``.
    """
    channels = len(means.getbands())
    row = means.width * channels
    bands = _bands(blocks.height, blocks.side, size, 1, _DOWN, _BETWEEN)
    strips = [bands[at : at + _STRIP // _BAND] for at in range(0, len(bands), _STRIP // _BAND)]
    # Memory that is used again: to be given new pages for each strip took longer than all the rest.
    pixels = np.empty((max(strip[-1].span.stop - strip[0].span.start for strip in strips), row), np.float32)
    between = np.empty((size, row), np.float32)  # in parts of a grey level
    for strip in strips:
        top, bottom = strip[0].span.start, strip[-1].span.stop
        part = means.crop((0, top, means.width, bottom))
        np.copyto(pixels[: bottom - top], np.asarray(part).reshape(-1, row))
        for band in strip:
            _multiply(band.weights, pixels[band.span.start - top : band.span.stop - top], between[band.rows])
        done = between[strip[0].rows.start : strip[-1].rows.stop]
        np.rint(done, out=done)
    levels = np.empty((size, size * channels), np.float32)
    for band in _bands(blocks.width, blocks.side, size, channels, _ACROSS, 1 / _BETWEEN):
        _multiply(band.weights, between[:, band.span].T, levels[:, band.rows].T)
    levels += 0.5
    square = levels.clip(0, 255, out=levels).astype(np.uint8)
    return Image.fromarray(square.reshape((size, size, channels) if channels > 1 else (size, size)))


def _multiply(left: Floats, right: Floats, out: Floats) -> None:
    """``left @ right``, in pieces that one thread computes."""
    width = max(1, _ONE_THREAD // left.size)
    for at in range(0, right.shape[1], width):
        np.matmul(left, right[:, at : at + width], out=out[:, at : at + width])


@lru_cache(maxsize=16)
def _bands(length: int, side: int, size: int, channels: int, parts: int, gain: float) -> tuple[_Band, ...]:
    """Weights along one axis, for channels that lie side by side: in whole ``parts`` of 1, then times ``gain``."""
    first, weights = estimate(length, side, size)
    # Sums are rounded, not each weight: so they add up to 1, and what is flat stays as it is.
    whole = np.diff(np.rint(np.cumsum(weights, axis=1) * parts), axis=1, prepend=0)
    bands = []
    for at in range(0, size, _BAND):
        shifts = first[at : at + _BAND] - first[at]
        dense = np.zeros((len(shifts), shifts[-1] + whole.shape[1]))
        for row, shift in enumerate(shifts):
            dense[row, shift : shift + whole.shape[1]] = whole[at + row] * gain / parts
        rows = slice(at * channels, (at + len(shifts)) * channels)
        span = slice(int(first[at]) * channels, int(first[at] + dense.shape[1]) * channels)
        bands.append(_Band(rows, span, np.kron(dense, np.eye(channels)).astype(np.float32)))
    return tuple(bands)


def estimate(length: int, side: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Best weights of block means along one axis, for what the antialiased filter gives of the pixels.

    Args:
        length: of the axis, in pixels.
        side: of a block, in pixels; the last may reach beyond the axis.
        size: of the result; at most the number of blocks.

    Returns:
        The first block of each value of the result, int64 [size], ascending; and the weights of it and those after it,
        float64 [size, N], each row with the sum 1.
    """
    start, filters = _bilinear(length, size)
    taps = filters.shape[1]
    blocks = -(-length // side)
    count = min(blocks, (taps + side - 2) // side + 1)
    first = np.minimum(start // side, blocks - count)

    # How far a pixel is from those of a block, in the mean; by its place, counted from the block's first.
    lowest = -side * count
    places = np.arange(lowest, side * count + taps)
    distance = np.abs(places[:, None] - np.arange(side)).mean(axis=1)
    apart = distance[np.arange(count)[:, None] * side + np.arange(side) - lowest].mean(axis=1)
    index = np.arange(count)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = apart[np.abs(index[:, None] - index)]
    system[count, count] = 0
    wanted = np.ones((count + 1, size))
    wanted[:count] = 0
    offset = start - side * first - side * index[:, None] - lowest
    for tap in range(taps):
        wanted[:count] += filters[:, tap] * distance[offset + tap]
    return first, np.linalg.solve(system, wanted)[:count].T


def _bilinear(length: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pillow's filter: the first pixel of each value of the result, [size]; weights of it and the next, [size, N]."""
    scale = length / size
    centre = (np.arange(size) + 0.5) * scale
    start = np.maximum(0, centre - scale + 0.5).astype(np.int64)
    stop = np.minimum(length, centre + scale + 0.5).astype(np.int64)
    pixels = start[:, None] + np.arange((stop - start).max())
    weights = np.maximum(0, 1 - np.abs(pixels + 0.5 - centre[:, None]) / scale) * (pixels < stop[:, None])
    return start, weights / weights.sum(axis=1, keepdims=True)
