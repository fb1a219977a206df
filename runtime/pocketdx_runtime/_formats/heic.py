"""HEIC (ISO/IEC 23008-12) through the optional package pi-heif.

It is called directly and not registered with Pillow, whose registry belongs to the host program.
"""

from __future__ import annotations

from PIL import Image

from pocketdx_runtime._formats.base import Limits, check_size, missing_extra
from pocketdx_runtime._formats.pixels import flatten

NAME = "HEIC"


def decode(data: bytes, limits: Limits, cover: int | None) -> Image.Image:  # noqa: ARG001 (nothing to scale by)
    """Primary picture of the file, mode ``L`` or ``RGB``.

    Rotation is a property of the container and applied by libheif. EXIF's orientation only repeats it (iPhones
    write both) and is ignored, as HEIF wants. 10- and 12-bit pictures become 8-bit.
    """
    try:
        import pi_heif
    except ImportError as error:
        raise missing_extra(NAME, "heic") from error

    file = pi_heif.open_heif(data)  # parses boxes only
    picture = file[file.primary_index]
    check_size(limits, *picture.size)
    width, height = picture.size
    pixels = picture.data  # decodes
    if picture.size != (width, height):
        check_size(limits, *picture.size)
    return flatten(Image.frombytes(picture.mode, picture.size, pixels, "raw", picture.mode, picture.stride))
