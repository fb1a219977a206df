"""Python packages for another processor: pip picks the wheels, we unpack them beside each other."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.programs import call

_REMEDY = "pip must be installed here and reach a package index that has aarch64 wheels"
# glibc 2.28 and older, which every Debian, Ubuntu and Raspberry Pi OS that has a Python of today has.
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def fetch_wheels(wanted: dict[str, str], python: str, scratch: Path, site: Path) -> dict[str, str]:
    """Download aarch64 wheels and unpack them into `site`, without their dependencies.

    Args:
        wanted: version by package; "" and a version without a wheel for aarch64 stand for the newest.
        python: version of the interpreter that will import them: "3.11".
        scratch: a new folder for the downloads.
        site: where their packages go; made.

    Returns:
        The version of each that came.

    Raises:
        DeviceError: pip is not installed, reaches no index, or finds no wheel at all.
    """
    scratch.mkdir()
    try:
        _download((f"{name}=={version}" if version else name for name, version in wanted.items()), python, scratch)
    except DeviceError as problem:
        if "No matching distribution" not in str(problem):
            raise
        for name, version in wanted.items():
            _download_or_newest(name, version, python, scratch)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    found = (wheel.name.split("-")[:2] for wheel in scratch.glob("*.whl"))
    return {name.replace("_", "-").lower(): version for name, version in found}


def _download_or_newest(name: str, version: str, python: str, folder: Path) -> None:
    try:
        _download([f"{name}=={version}" if version else name], python, folder)
    except DeviceError as problem:
        if not version or "No matching distribution" not in str(problem):
            raise
        _download([name], python, folder)


def _download(requirements: Iterable[str], python: str, folder: Path) -> None:
    platforms = [word for each in _PLATFORMS for word in ("--platform", each)]
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
    kind = ("--only-binary=:all:", "--implementation", "cp", "--python-version", python)
    call([*pip, *kind, *platforms, "--dest", str(folder), *requirements], remedy=_REMEDY)
