"""A stand-in for a 12-megapixel phone photo, drawn from a seed: no camera and no patient needed.

What decides how long a JPEG takes to decode is how many coefficients it holds. So the picture has what natural images
have: occluding shapes of all sizes (the dead leaves model: Lee, Mumford & Huang, "Occlusion Models for Natural Images",
IJCV 2001), surfaces with a 1/f amplitude spectrum (Field, JOSA A 1987), a lens that blurs a little, and a sensor's
noise, grown with the light (Foi et al., IEEE TIP 2008) and smoothed as phones do.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 4032, 3024
QUALITY = 90
_LEAVES = 1500
_TILE = 1024


def photo(seed: int, *, detail: float = 0.5, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A JPEG, quality 90, 4:2:0; at the default size of 12 megapixels 1.7 to 4 MB, by the detail.

    Args:
        seed: 0 or more; the same one draws the same picture.
        detail: of the surfaces and the sensor's grain, from 0 (smooth, well lit) to 1 (rough, poorly lit).
        width: in pixels.
        height: in pixels.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    leaves = _dead_leaves(rng, width, height).filter(ImageFilter.GaussianBlur(1.2))
    light = np.asarray(leaves, dtype=np.float32)
    light += _texture(rng, width, height)[..., None] * np.float32(2 + 12 * detail)
    light += _noise(rng, width, height, light) * np.float32(1 + detail)
    file = io.BytesIO()
    picture = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def small_jpeg() -> bytes:
    """A JPEG of 224 x 224 pixels and about 8 KB: what is left of a photo that was made smaller before it was sent."""
    out = io.BytesIO()
    Image.open(io.BytesIO(photo(0, width=896, height=896))).resize((224, 224)).save(out, "JPEG", quality=85)
    return out.getvalue()


def _dead_leaves(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Ellipses and polygons over each other, of radii r with a density of r**-3, in muted colours."""
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(60, 180, 3)))
    pen = ImageDraw.Draw(picture)
    longest = max(width, height)
    smallest, largest = longest / 150, longest / 3
    chances = rng.uniform(0, 1, _LEAVES)
    radii = (smallest**-2 + chances * (largest**-2 - smallest**-2)) ** -0.5
    for radius in sorted(radii, reverse=True):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        grey = rng.uniform(25, 225)
        colour = tuple(int(v) for v in np.clip(grey + rng.normal(0, 18, 3), 0, 255))
        corners = 40 if rng.uniform() < 0.6 else int(rng.integers(3, 8))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 40 else np.linspace(0, 2 * np.pi, corners)
        stretch = rng.uniform(0.5, 1.0)
        outline = zip(x + radius * np.cos(angles), y + stretch * radius * np.sin(angles), strict=True)
        pen.polygon([(float(a), float(b)) for a, b in outline], fill=colour)
    return picture


def _texture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """float32 [height, width] with an amplitude spectrum of 1/f, mean 0 and standard deviation 1."""
    down, right = np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None]
    frequency = np.hypot(down, right)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((_TILE, _TILE))) / frequency
    tile = np.fft.irfft2(spectrum, (_TILE, _TILE)).astype(np.float32)
    tile = (tile - tile.mean()) / tile.std()
    # It wraps around without a seam.
    repeats = (-(-height // _TILE), -(-width // _TILE))
    return np.tile(tile, repeats)[:height, :width]


def _noise(rng: np.random.Generator, width: int, height: int, light: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [height, width, 3]; its variance grows with the light; neighbours are alike, as after denoising."""
    grain = np.empty((height, width, 3), dtype=np.float32)
    for channel in range(3):
        white = rng.standard_normal((height, width), dtype=np.float32)
        smooth = white + np.roll(white, 1, 0) + np.roll(white, 1, 1) + np.roll(white, (1, 1), (0, 1))
        grain[..., channel] = smooth / 2
    grain *= np.sqrt(0.5 + 0.012 * np.clip(light, 0, 255))
    return grain
