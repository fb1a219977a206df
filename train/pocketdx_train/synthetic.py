"""Synthetic microscope fields for the demo: a white cell among red cells, drawn by a program.

They show that the whole road works, with pictures that anyone may have. They are not data: nothing learnt from
them holds for a patient. Every file says so, in its name and inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pocketdx_runtime.files import folder_written_aside
from pocketdx_train.errors import DataError
from pocketdx_train.microscope import Optics, photograph
from pocketdx_train.smear import HAZE, PINK, Dice, Field, draw_debris, draw_platelet, draw_red_cell
from pocketdx_train.white_cells import CLASSES, draw_white_cell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

COMMENT = "Synthetic: drawn by a program (PocketDx demo). No patient, no diagnostic value."
"""Comment in each JPEG file."""
SIZES = (64, 512)
"""Smallest and largest side of a picture in pixels."""
_FIRST_INDEX = {"train": 0, "val": 100_000, "test": 200_000}
_README = """\
Synthetic microscope fields, drawn by a program: the demo of PocketDx.

These are no photographs. No patient, no blood and no data set stand behind them, and a model trained on
them has no diagnostic value. They show that training, export and prediction work from end to end.

Each picture shows one white cell among red cells, with stain, light, focus and noise varied from picture to
picture. What tells the classes apart is form:
  blast        large nucleus of fine chromatin with pale nucleoli, scant deep blue cytoplasm
  lymphocyte   small round nucleus of dense clumps, thin rim of light blue cytoplasm
  neutrophil   nucleus in two to five lobes, pink granular cytoplasm

Seed {seed}, {size} x {size} pixels. The same seed draws the same pictures.
{counts}
"""


@dataclass(frozen=True)
class SyntheticSet:
    """What :func:`generate` wrote."""

    folder: Path
    classes: tuple[str, ...]
    per_class: Mapping[str, int]
    """Pictures of each class by split."""
    size: int
    seed: int

    @property
    def images(self) -> int:
        """Pictures in all."""
        return len(self.classes) * sum(self.per_class.values())


def generate(
    folder: Path,
    *,
    per_class: Mapping[str, int],
    size: int = 160,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSet:
    """Write ``folder/{train,val,test}/CLASS/synthetic_INDEX.jpg`` and a README.txt, whole or not at all.

    Picture INDEX of a class depends on nothing but the seed, the class, the index and the size; no two splits
    share an index, and asking for more pictures leaves the others as they were.

    Args:
        folder: does not exist yet.
        per_class: pictures of each class by split: any of ``train``, ``val``, ``test``.
        size: side in pixels, 64 to 512.
        seed: 0 or more.
        progress: called with the pictures written and the pictures in all, after each.

    Raises:
        DataError: a split of another name, a count below 0 or from 100 000 on, no picture at all, or a size or
            seed out of range.
        OutputError: ``folder`` exists or cannot be written.
    """
    _check(per_class, size, seed)
    wanted = SyntheticSet(Path(folder), CLASSES, dict(per_class), size, seed)
    done = 0
    with folder_written_aside(folder) as aside:
        for split, count in per_class.items():
            for kind in CLASSES:
                place = aside / split / kind
                place.mkdir(parents=True)
                for index in range(_FIRST_INDEX[split], _FIRST_INDEX[split] + count):
                    _save(place / f"synthetic_{index:06d}.jpg", kind, index, size, seed)
                    done += 1
                    if progress is not None:
                        progress(done, wanted.images)
        counts = "\n".join(f"{split}: {count} pictures of each class" for split, count in per_class.items())
        (aside / "README.txt").write_text(_README.format(seed=seed, size=size, counts=counts), encoding="utf-8")
    return wanted


def _check(per_class: Mapping[str, int], size: int, seed: int) -> None:
    for split, count in per_class.items():
        if split not in _FIRST_INDEX:
            raise DataError(f"{split}: not a split; choose from {', '.join(_FIRST_INDEX)}")
        if not 0 <= count < 100_000:
            raise DataError(f"{split}: {count} pictures of each class; ask for 0 to 99999")
    if not sum(per_class.values()):
        raise DataError("no picture asked for; ask for at least one of each class")
    if not SIZES[0] <= size <= SIZES[1]:
        raise DataError(f"pictures of {size} pixels; ask for {SIZES[0]} to {SIZES[1]}")
    if seed < 0:
        raise DataError(f"seed {seed}; choose 0 or more")


def _save(path: Path, kind: str, index: int, size: int, seed: int) -> None:
    quality = Dice(seed, CLASSES.index(kind), index, 1).count(70, 95)
    picture = Image.fromarray(draw(kind, index, size=size, seed=seed))
    picture.save(path, format="JPEG", quality=quality, comment=COMMENT)


def draw(kind: str, index: int, *, size: int = 160, seed: int = 0) -> NDArray[np.uint8]:
    """Draw picture ``index`` of a class: uint8 [size, size, 3] RGB.

    Random numbers come from PCG64, and whole arrays only go through operations that IEEE 754 defines to the last
    bit, so that every machine draws the same; the sine of a single angle, which a C library may round otherwise,
    could at most move a grey level by one.

    Args:
        kind: one of ``CLASSES``.
        index: 0 or more.
        size: side in pixels; shows the same part of the smear at another resolution.
        seed: 0 or more.
    """
    dice = Dice(seed, CLASSES.index(kind), index)
    field, optics = compose(kind, dice, size)
    return photograph(field.stains, optics, dice)


def compose(kind: str, dice: Dice, size: int) -> tuple[Field, Optics]:
    """Draw the stains of a field of ``size`` pixels and choose the circumstances of its picture."""
    scale = size / dice.between(21, 33)
    optics = Optics.at_random(dice, scale)
    stains = np.zeros((4, size, size), dtype=np.float32)
    field = Field(stains, dice, scale, softness=max(1.0, 0.2 * scale), fringe=dice.between(0.02, 0.14))
    stains[PINK] += dice.between(0.0, 0.12) * (1.0 + 0.3 * field.noise(HAZE, (size, size)))  # dried plasma
    x, y = size * dice.between(0.38, 0.62), size * dice.between(0.38, 0.62)
    radius = draw_white_cell(field, kind, x, y)
    _scatter_red_cells(field, x, y, radius)
    for _ in range(dice.count(0, 4)):
        at_x, at_y = dice.between(0, size), dice.between(0, size)
        if math.hypot(at_x - x, at_y - y) > radius + scale:
            draw_platelet(field, at_x, at_y)
    for _ in range(dice.count(0, 2)):
        draw_debris(field, dice.between(0, size), dice.between(0, size))
    return field, optics


def _scatter_red_cells(field: Field, x: float, y: float, radius: float) -> None:
    """Draw red cells around the white cell at (x, y), in the thin or the thick part of a smear."""
    dice = field.dice
    usual = dice.between(3.3, 3.9) * field.scale
    room = dice.between(1.05, 1.9) * usual
    centres: list[tuple[float, float]] = []
    for _ in range(dice.count(10, 60)):
        own = usual * dice.between(0.88, 1.12)
        at_x, at_y = dice.between(-own, field.size + own), dice.between(-own, field.size + own)
        free = all(math.hypot(at_x - other_x, at_y - other_y) > room for other_x, other_y in centres)
        if free and math.hypot(at_x - x, at_y - y) > radius + 0.85 * own:
            centres.append((at_x, at_y))
            draw_red_cell(field, at_x, at_y, own)


def contact_sheet(columns: int = 7, *, size: int = 160, seed: int = 0) -> Image.Image:
    """Lay out the first pictures of each class, one class a row, with its name above: for a README."""
    gap, caption = max(2, size // 40), max(14, size // 8)
    font = ImageFont.load_default(caption * 0.7)
    height = size + gap + caption
    sheet = Image.new("RGB", (columns * (size + gap) - gap, len(CLASSES) * height - gap), "white")
    pen = ImageDraw.Draw(sheet)
    for row, kind in enumerate(CLASSES):
        pen.text((0, row * height), f"synthetic {kind}", fill="#333333", font=font)
        for column in range(columns):
            tile = Image.fromarray(draw(kind, column, size=size, seed=seed))
            sheet.paste(tile, (column * (size + gap), row * height + caption))
    return sheet
