"""One PNG of the images that are decided differently, with both sides' probabilities."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pocketdx_export.parity.pictures import Pictures
from pocketdx_export.parity.report import Flip, Report

_MOST = 48
_TILE, _TEXT, _GAP, _COLUMNS = 192, 92, 12, 5
_INK, _PAPER, _FAINT = (24, 24, 27), (250, 250, 250), (95, 95, 105)


def contact_sheet(report: Report, pictures: Pictures) -> bytes | None:
    """PNG bytes; None where nothing is decided differently.

    Args:
        report: whose cells list the flips.
        pictures: as the network gets them.
    """
    tiles = [(flip, cell.file, cell.backend) for cell in report.cells for flip in cell.flips]
    if not tiles:
        return None
    shown = tiles[:_MOST]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    footer = 28 if len(tiles) > len(shown) else 0
    width, height = columns * (_TILE + _GAP) + _GAP, rows * (_TILE + _TEXT + _GAP) + _GAP + footer
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (flip, file, backend) in enumerate(shown):
        left = _GAP + number % columns * (_TILE + _GAP)
        top = _GAP + number // columns * (_TILE + _TEXT + _GAP)
        picture = Image.fromarray(np.array(pictures.expected[flip.row])).resize((_TILE, _TILE))
        sheet.paste(picture, (left, top))
        _caption(draw, left, top + _TILE + 4, flip, f"{file}, {backend}")
    if footer:
        draw.text((_GAP, height - footer), f"and {len(tiles) - len(shown)} more: see parity.json", _INK, _font(14))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _caption(draw: ImageDraw.ImageDraw, left: int, top: int, flip: Flip, where: str) -> None:
    name = flip.picture if len(flip.picture) < 32 else f"...{flip.picture[-29:]}"
    lines = [
        (f"{flip.label}: {flip.reference:.3f} -> {flip.ours:.3f}", _INK, 14),
        (f"truth: {flip.truth}; {flip.kind}", _INK, 12),
        *((line, _FAINT, 11) for line in textwrap.wrap(name, 34)[:1]),
        *((line, _FAINT, 11) for line in textwrap.wrap(where, 34)[:2]),
    ]
    for text, colour, size in lines:
        # Pillow's own font has no other letters than Latin ones: a box for each of them is no error.
        draw.text((left, top), text, colour, _font(size))
        top += size + 4


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
