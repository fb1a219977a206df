"""Real pictures: the page on this device, the page on the server and Python give one answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pocketdx_runtime.image_files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from web_stage import Bundle, Screen, Served


def test_both_places_agree_on_x_rays_ultrasound_and_smears(
    screen: Callable[..., Screen], server: Served, bundle: Bundle, shared_data: Path
) -> None:
    chosen = []
    for kind in ("chest-xray", "breast-ultrasound", "blood-smear"):
        found = sorted(path for path in (shared_data / kind).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        chosen += found[:: max(1, len(found) // 3)][:3]
    assert len(chosen) == 9
    page = screen(server.url)
    page.add(*chosen)
    here = [page.probabilities(path.name) for path in chosen]
    page.page.get_by_role("button", name="Remove all").click()
    page.choose_mode("On the server")
    page.add(*chosen)
    for path, on_device in zip(chosen, here, strict=True):
        expected = list(bundle.model.diagnose([path])[0].probabilities.values())
        assert page.probabilities(path.name) == pytest.approx(expected, abs=1e-6)
        # Browsers decode JPEG themselves: a grey level here and there. PNG is exact.
        assert on_device == pytest.approx(expected, abs=1e-3 if path.suffix != ".png" else 1e-4), path.name
