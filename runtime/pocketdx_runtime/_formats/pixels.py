"""From any kind of pixel to 8-bit grey or RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pocketdx_runtime._formats.base import RefusalError, unsupported
from pocketdx_runtime.errors import ImageReason

# The picture uses 12 bits or fewer of 16: at most 16 of 256 grey levels would be left of it.
_DARK = 4096


def flatten(picture: Image.Image) -> Image.Image:
    """8-bit picture, mode ``L`` or ``RGB``, of a loaded picture of any mode.

    Alpha and palette transparency are composited on black: what phones and browsers show on their opaque
    surfaces (premultiplied pixels on nothing), what a scanner's empty corner is, and what DICOM shows
    outside its picture.

    CMYK becomes RGB by (255 - C)(255 - K)/255, without colour profiles; colour profiles of RGB pictures
    are ignored too, as in the training pipelines the published models come from.

    Raises:
        RefusalError: AMBIGUOUS for pixels without a known black and white; see ``high_byte``.
    """
    if picture.mode.startswith("I"):
        return _deep(picture)
    if picture.mode in ("F", "LAB", "HSV"):
        raise no_known_white("32-bit float" if picture.mode == "F" else picture.mode)
    if picture.has_transparency_data:
        return _on_black(picture)
    if picture.mode in ("L", "RGB"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def high_byte(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8 grey of uint16 grey: the whole range 0..65535 onto 0..255, by the high byte.

    The map is the same for every picture, so equal values stay equal across a data set. The high byte is
    what libpng, OpenCV and Pillow (for 16-bit colour) keep, and returns 8-bit data exactly whether it was
    widened by ``v * 257`` or by ``v << 8``.

    Raises:
        RefusalError: AMBIGUOUS if no value reaches 4096. Such a picture (10- or 12-bit data put into 16 bits
            without scaling, as many detectors and microscopes do) would come out almost black and get a
            confident, worthless diagnosis. Guessing its depth from its brightest pixel would make the
            brightness of a picture depend on one hot pixel; so it is for the user to say.
    """
    if values.size and int(values.max()) < _DARK:
        detail = (
            f"16-bit picture with no value above {int(values.max())} of 65535, almost black; "
            "scale its values to the full range (12-bit data: multiply by 16)"
        )
        raise RefusalError(ImageReason.AMBIGUOUS, detail)
    return (values >> 8).astype(np.uint8)


def no_known_white(what: str) -> RefusalError:
    """RefusalError of a kind of value whose black and white nobody has told."""
    detail = f"{what} pixels do not say what is black and white; convert the picture to 8-bit grey or RGB"
    return RefusalError(ImageReason.AMBIGUOUS, detail)


def _deep(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    if picture.mode == "I":  # what Pillow makes of a uint16 array, but also of any 32-bit integer
        if values.min() < 0 or values.max() > 0xFFFF:
            raise no_known_white("32-bit integer")
        values = values.astype(np.uint16)
    grey = high_byte(values)
    transparent = picture.info.get("transparency")  # PNG: one grey value that means "nothing here"
    if isinstance(transparent, int):
        grey[values == transparent] = 0
    return Image.fromarray(grey)


def _on_black(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":  # premultiplied grey converts to nothing but LA
        picture = picture.convert("LA")
    rgba = picture.convert("RGBA")
    flat = Image.new("RGB", rgba.size)
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def array_to_picture(values: npt.NDArray[Any]) -> Image.Image:
    """Picture, mode ``L`` or ``RGB``, of an array.

    Args:
        values: uint8 [H,W] or [H,W,1] grey, [H,W,3] RGB, [H,W,4] RGBA (composited on black); uint16 [H,W]
            or [H,W,1] grey (see ``high_byte``); bool [H,W] (False black, True white).

    Raises:
        RefusalError: any other shape or dtype. Floats are refused, since 0..1, 0..255 and normalised values
            all occur and look alike.
    """
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    shape = "x".join(map(str, values.shape))
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        remedy = "pass one picture as [H,W], [H,W,3] or [H,W,4] (channels last)"
        raise unsupported(f"array of shape {shape}", remedy)
    if values.dtype == np.bool_ and values.ndim == 2:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype in (np.dtype("<u2"), np.dtype(">u2")) and values.ndim == 2:
        values = high_byte(values)
    elif values.dtype.kind == "f":
        raise no_known_white(f"{values.dtype} array")
    elif values.dtype != np.uint8:
        raise unsupported(f"{values.dtype} array of shape {shape}", "pass uint8, or uint16 grey [H,W]")
    return flatten(Image.fromarray(np.ascontiguousarray(values)))
