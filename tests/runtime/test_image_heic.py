"""HEIC, with pi-heif and without it."""

import base64
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketdx_runtime.errors import ImageError, ImageReason
from pocketdx_runtime.image import Limits, decode, load

# pi-heif cannot write, so these were made with pillow-heif: 64 x 48, white above, red and blue below. The second
# is what an iPhone held upright writes: rotated by the container (irot) and, once more, by EXIF.
PLAIN = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJp"
    "bG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAK8AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAAB"
    "AAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEA"
    "AQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAA"
    "FGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhp"
    "cG1hAAAAAAAAAAEAAQWBAgMFhAAAALdtZGF0AAAAqygBrwY44+fY+Vm/yLuSXymvf+gSj//8kV9l+yVKOcQ+UWuz2aQ9L72s6C4L/A1i"
    "W+0j7Kp38N3HH75cxNXHmK0J0PQd/PoKFyP6Ref/+j344imeIwA/9iPA2zOcEX0GgDlPF8aFGb5JERLWgVjzdHSrTh4aitQEPHh0PI0d"
    "nmnlO/Ht8NsmHxB4b9K19vsIMqyPyEciwDJRKEg9STMxaSfvP//g/IiX6a8zsA=="
)
TURNED = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRp"
    "bG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAK8AAgAAAAACmwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA"
    "/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMD"
    "IAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAA"
    "AAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAA"
    "AAAAAAAOY2RzYwACAAEAAQAAANttZGF0AAAAqygBrwY44+fY+Vm/yLuSXymvf+gSj//8kV9l+yVKOcQ+UWuz2aQ9L72s6C4L/A1iW+0j"
    "7Kp38N3HH75cxNXHmK0J0PQd/PoKFyP6Ref/+j344imeIwA/9iPA2zOcEX0GgDlPF8aFGb5JERLWgVjzdHSrTh4aitQEPHh0PI0dnmnl"
    "O/Ht8NsmHxB4b9K19vsIMqyPyEciwDJRKEg9STMxaSfvP//g/IiX6a8zsAAAAAZFeGlmAABNTQAqAAAACAABARIAAwAAAAEABgAAAAAA"
    "AA=="
)
RED, BLUE, WHITE = (200, 40, 40), (40, 40, 200), (230, 230, 230)


def close(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= 6)


def refusal(data: bytes, limits: Limits | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, limits=limits or Limits(), name="IMG_0001.HEIC")
    assert str(caught.value).startswith("IMG_0001.HEIC: ")
    return caught.value


def claim_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"ispe") + 8
    return data[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[at + 8 :]


@pytest.fixture
def pi_heif() -> None:
    pytest.importorskip("pi_heif", reason="the extra [heic] is not installed")


@pytest.mark.usefixtures("pi_heif")
def test_a_heic_shows_its_colours() -> None:
    pixels = decode(PLAIN)
    assert pixels.shape == (48, 64, 3)
    assert close(pixels[4, 4], WHITE)
    assert close(pixels[40, 4], RED)
    assert close(pixels[40, 60], BLUE)
    assert load(PLAIN, 16).shape == (16, 16, 3)


@pytest.mark.usefixtures("pi_heif")
def test_a_heic_turned_by_its_container_and_by_exif_is_turned_once() -> None:
    pixels = decode(TURNED)
    assert pixels.shape == (64, 48, 3)
    assert close(pixels[4, 44], WHITE)
    assert close(pixels[4, 4], RED)
    assert close(pixels[60, 4], BLUE)


@pytest.mark.usefixtures("pi_heif")
def test_the_size_a_heic_claims_is_checked_before_it_is_decoded_whatever_is_cropped_for_display() -> None:
    error = refusal(claim_size(PLAIN, 40_000, 40_000))
    assert error.reason is ImageReason.TOO_LARGE
    assert "40000x40000" in str(error)
    assert refusal(PLAIN, Limits(max_pixels=64 * 48)).reason is ImageReason.TOO_LARGE  # coded as 64 x 64
    assert refusal(claim_size(PLAIN, 0, 64)).reason is ImageReason.ZERO_SIZE


@pytest.mark.usefixtures("pi_heif")
def test_a_heic_that_lies_about_its_size_is_refused() -> None:
    assert refusal(claim_size(PLAIN, 9_000, 9_000)).reason is ImageReason.CORRUPT


@pytest.mark.usefixtures("pi_heif")
def test_a_heic_cut_anywhere_is_refused() -> None:
    for length in range(32, len(PLAIN), 7):
        assert refusal(PLAIN[:length]).reason in (ImageReason.TRUNCATED, ImageReason.CORRUPT)


@pytest.mark.usefixtures("pi_heif")
def test_metadata_of_a_type_that_is_no_text_does_not_crash_the_process() -> None:
    """pi-heif 1.4.0 dies of a segmentation fault on this file, so it runs in a process of its own."""
    poisoned = TURNED.replace(b"Exif\0\0\0\0", b"\xc5xif\0\0\0\0", 1)
    assert poisoned != TURNED
    code = "import sys; from pocketdx_runtime.image import decode; print(decode(sys.stdin.buffer.read()).shape)"
    done = subprocess.run([sys.executable, "-c", code], input=poisoned, capture_output=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout.strip() == b"(64, 48, 3)"


@pytest.mark.usefixtures("pi_heif")
def test_pillows_registry_does_not_learn_of_heic() -> None:
    decode(PLAIN)
    assert not {"HEIF", "HEIC"} & set(Image.OPEN)


def test_without_the_extra_a_heic_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    path = tmp_path / "a.heic"
    path.write_bytes(PLAIN)
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert caught.value.reason is ImageReason.MISSING_EXTRA
    assert str(caught.value) == f"{path}: HEIC needs an optional package: pip install 'pocketdx[heic]'"


def test_without_the_extra_other_formats_still_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert decode(Image.new("RGB", (3, 2))).shape == (2, 3, 3)
