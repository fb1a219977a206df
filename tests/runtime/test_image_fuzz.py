"""Whatever the bytes: pixels or ImageError, within seconds, without warnings."""

import io
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketdx_runtime.errors import ImageError
from pocketdx_runtime.image import Limits, decode, load

LIMITS = Limits(max_bytes=2**20, max_pixels=2_000_000, max_side=4_096)
SECONDS = 3.0  # generous: the machine may be busy. The slowest of 70 000 mutants took 0.3.


def _seeds() -> dict[str, bytes]:
    noise = np.random.default_rng(5).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise // 4 + np.arange(53, dtype=np.uint8)[None, :, None] * 3)
    deep = Image.fromarray((noise[:, :, 0].astype(np.int32)) * 257).convert("I;16")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "description"
    variants: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "progressive": (rgb, "JPEG", {"progressive": True}),
        "cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "png": (rgb, "PNG", {"exif": exif}),
        "palette": (rgb.quantize(16), "PNG", {"transparency": 3}),
        "deep": (deep, "PNG", {}),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "lossless": (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        "bmp": (rgb, "BMP", {}),
        "bmp-palette": (rgb.quantize(8), "BMP", {}),
        "tiff": (rgb, "TIFF", {"exif": exif}),
        "tiff-lzw": (deep, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff-deflate": (rgb.convert("CMYK"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff-packbits": (rgb.quantize(4), "TIFF", {"compression": "packbits"}),
    }
    encoded = {}
    for name, (picture, kind, options) in variants.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        encoded[name] = buffer.getvalue()
    try:
        import pydicom
    except ImportError:
        return encoded
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    names = ("CT_small", "MR_small_RLE", "SC_rgb_jpeg_dcmtk", "MR_small_jp2klossless", "MR_small_implicit")
    return encoded | {name: (folder / f"{name}.dcm").read_bytes() for name in names}


SEEDS = _seeds()
SNIPPETS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\xff\xd9",
    b"\xff\xda\0\2",
    b"",
)


def check(data: bytes) -> None:
    """The whole promise, for one input."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="PIL")
        warnings.filterwarnings("ignore", module="pydicom")  # it comments on malformed values, as it should
        for work in (lambda: decode(data, limits=LIMITS), lambda: load(data, 16, limits=LIMITS)):
            pixels, message = np.zeros((1, 1, 3), np.uint8), ""
            try:
                pixels = work()
            except ImageError as error:
                message = str(error)
            assert "\n" not in message
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.size
    assert time.perf_counter() - started < SECONDS


def apply(data: bytes, edits: list[tuple[int, float, int, bytes]]) -> bytes:
    """Overwrite, insert, delete or cut at places given as fractions; half of all edits fall into the header."""
    mutant = bytearray(data)
    for kind, where, amount, text in edits:
        reach = min(len(mutant), 400) if amount % 2 else len(mutant)
        at = int(where * reach)
        if kind == 0:
            mutant[at : at + len(text)] = text
        elif kind == 1:
            mutant[at:at] = text
        elif kind == 2:
            del mutant[at : at + amount]
        elif kind == 3 and at < len(mutant):
            mutant[at] ^= 1 << amount % 8
        elif kind == 4:
            mutant[at:at] = mutant[at // 2 : at // 2 + amount]
        else:
            del mutant[at:]
    return bytes(mutant)


edit = st.tuples(
    st.sampled_from([0, 0, 0, 1, 2, 3, 3, 3, 4, 5]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 64),
    st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=6)),
)

HEADS = tuple({data[:length] for data in SEEDS.values() for length in (4, 12, 20, 34, 60, 140)})


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_themselves_decode(name: str) -> None:
    assert decode(SEEDS[name]).size


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(SEEDS)), edits=st.lists(edit, min_size=1, max_size=12))
def test_a_mutated_picture_gives_pixels_or_an_image_error(
    name: str, edits: list[tuple[int, float, int, bytes]]
) -> None:
    check(apply(SEEDS[name], edits))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=400))
@example(head=b"", tail=b"")
@example(head=b"\xff\xd8\xff", tail=b"")
@example(head=b"BM", tail=b"")
@example(head=b"RIFF\0\0\0\0WEBP", tail=b"")
@example(head=b"II*\0", tail=b"\x04\0\0\0")
@example(head=bytes(128) + b"DICM", tail=b"")
def test_a_plausible_beginning_with_any_ending_gives_pixels_or_an_image_error(head: bytes, tail: bytes) -> None:
    check(head + tail)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=2_000))
def test_any_bytes_give_pixels_or_an_image_error(data: bytes) -> None:
    check(data)


def test_mutated_heic_files_never_bring_the_process_down() -> None:
    """In a process of its own, because native code crashes rather than raises."""
    pytest.importorskip("pi_heif", reason="the extra [heic] is not installed")
    done = subprocess.run(
        [sys.executable, __file__, str(Path(__file__).with_name("test_image_heic.py"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert int(done.stdout) > 100, "some mutants should still decode"


def _hammer_heic(module: Path) -> int:
    """Decode two thousand mutants of the HEIC files in a test module; the number that still gave pixels."""
    scope: dict[str, object] = {"__name__": "heic"}
    exec(compile(module.read_text(), module, "exec"), scope)
    dice = random.Random(3)
    decoded = 0
    for _ in range(2_000):
        data = scope[dice.choice(["PLAIN", "TURNED"])]
        assert isinstance(data, bytes)
        edits = [
            (dice.choice([0, 1, 2, 3, 3, 3, 4, 5]), dice.random(), dice.randrange(64), dice.choice(SNIPPETS))
            for _ in range(dice.choice([1, 1, 2, 4, 8]))
        ]
        try:
            decoded += bool(decode(apply(data, edits), limits=LIMITS).size)
        except ImageError:
            continue
    return decoded


if __name__ == "__main__":
    print(_hammer_heic(Path(sys.argv[1])))
