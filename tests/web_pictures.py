"""Drawn pictures and their files, for the tests of the page."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth structure with edges and grain, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    rows, columns = np.mgrid[0:height, 0:width]
    bars = (np.sin(rows / 9 + columns / 17) > 0.4)[..., None] * 50
    return Image.fromarray(np.clip(smooth + bars + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def with_gamma(png: bytes) -> bytes:
    """The PNG with a gAMA chunk of 1.0, by which a viewer would brighten it a lot."""
    body = b"gAMA" + struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
