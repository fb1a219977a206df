"""DICOM's grey-scale pipeline (PS3.3 C.11, PS3.4 N.2): stored value, modality units, window, grey level.

1. Modality: the Modality LUT, or RescaleSlope and RescaleIntercept (CT: Hounsfield units).
2. Values of interest: the first VOI LUT, else the first window (LINEAR, LINEAR_EXACT or SIGMOID). Where the
   object has neither, or a meaningless one, from the smallest to the largest value in the picture, as viewers
   do.
3. MONOCHROME1 is inverted last, so that its window still means what its maker chose.
4. Pixels with the padding value (outside the detector or the reconstruction circle) are black and do not
   count in step 2.

Every step is a function of the stored value alone, so it is computed once per value, not once per pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ELEMENTS = [
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]

Floats = npt.NDArray[np.float64]


def grey(stored: npt.NDArray[Any], dataset: Any, *, negative: bool) -> npt.NDArray[np.uint8]:
    """Grey levels uint8 [H,W] of stored values [H,W], at most 16 bits; ``negative`` means MONOCHROME1."""
    lowest, highest = int(stored.min()), int(stored.max())
    units = _modality(np.arange(lowest, highest + 1, dtype=np.float64), dataset)
    padding = _padding(stored, dataset)
    fraction = _of_interest(units, dataset)
    if fraction is None:
        used = stored if padding is None or padding.all() else stored[~padding]
        fraction = _stretched(units, units[int(used.min()) - lowest : int(used.max()) - lowest + 1])
    if negative:
        fraction = 1 - fraction
    levels = np.floor(fraction * 255 + 0.5).astype(np.uint8)
    picture = levels[stored.astype(np.int32) - lowest]
    if padding is not None:
        picture[padding] = 0
    return picture


def window(units: Floats, center: float, width: float, function: str = "LINEAR") -> Floats:
    """Fraction 0..1 of the way from black to white (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        units: values in modality units.
        center: window center, same units.
        width: window width, same units; at least 1 for LINEAR, above 0 otherwise.
        function: LINEAR, LINEAR_EXACT or SIGMOID.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (units - center) / width, -700, 700)))
    if function != "LINEAR_EXACT":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (units > center).astype(np.float64)
    return np.clip((units - center) / width + 0.5, 0, 1)


def _modality(values: Floats, dataset: Any) -> Floats:
    group = _functional_group(dataset, "PixelValueTransformationSequence")
    if sequence := dataset.get("ModalityLUTSequence"):
        return _table(sequence[0], values, dataset)[0]
    slope, intercept = _number(group, "RescaleSlope"), _number(group, "RescaleIntercept")
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _of_interest(units: Floats, dataset: Any) -> Floats | None:
    """Fraction 0..1 by VOI LUT or window; None if the object has none that can be used."""
    group = _functional_group(dataset, "FrameVOILUTSequence")
    if sequence := group.get("VOILUTSequence"):
        entries, top = _table(sequence[0], units, dataset)
        return entries / top
    center, width = _number(group, "WindowCenter"), _number(group, "WindowWidth")
    function = str(group.get("VOILUTFunction") or "LINEAR").strip().upper()
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return None
    return window(units, center, width, function)


def _stretched(units: Floats, used: Floats) -> Floats:
    low, high = float(used.min()), float(used.max())
    return np.clip((units - low) / (high - low or 1.0), 0, 1)


def _table(item: Any, values: Floats, dataset: Any) -> tuple[Floats, float]:
    """Entries of a LUT (PS3.3 C.11.1.1) for the values, and the largest value an entry can have."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 65_536
    data = item.LUTData
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * count else "<u2" if little else ">u2")
    entries = np.asarray(data, dtype=np.float64)[:count]
    if first > 0x7FFF and values[0] < 0:  # the descriptor is read as unsigned, but the values are signed
        first -= 0x10000
    index = np.clip(np.floor(values + 0.5) - first, 0, entries.size - 1).astype(np.int64)
    return entries[index], max(2.0**bits - 1, float(entries.max()))


def _padding(stored: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.bool_] | None:
    """Where the padding value, or a value in the padding range, is; None without one (PS3.3 C.7.5.1.1.2)."""
    ends = [_number(dataset, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    kind = stored.dtype.newbyteorder("=")
    wrapped = [int(np.array(int(end) & 0xFFFF, np.uint16).astype(kind)) for end in ends if end is not None]
    mask = (stored >= min(wrapped)) & (stored <= max(wrapped))
    return mask if mask.any() else None


def _functional_group(dataset: Any, name: str) -> Any:
    """Where enhanced objects keep the attributes that others have at the top; the top if not there."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in (dataset.get(groups) or [])[:1]:
            if found := item.get(name):
                return found[0]
    return dataset


def _number(dataset: Any, name: str) -> float | None:
    """First value of an element; None if it is absent, empty or not finite."""
    value = dataset.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, (int, float, str)):  # several windows: the first is the default view
        if len(value) == 0:
            return None
        value = value[0]
    number = float(value)
    return number if np.isfinite(number) else None
