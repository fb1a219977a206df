"""A Chromium to run the runtime for the web in: the machine's own, or Debian's, unpacked in the cache folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pocketdx_export.devices import debian, node
from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.folder import DeviceFolder
from pocketdx_runtime.files import folder_written_aside

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/icons", "usr/share/locale")
_INSTALLED = Path("/var/lib/dpkg/status")
# Libraries are looked for beside it first, then where the machine has them.
_LAUNCHER = """\
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$(find "$root/usr/lib" "$root/lib" -maxdepth 1 -type d -name '*-linux-gnu*' 2>/dev/null | tr '\\n' ':')
export LD_LIBRARY_PATH="$libraries$root/usr/lib/chromium${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ ! -d /etc/fonts ]; then export FONTCONFIG_PATH="$root/etc/fonts"; fi
exec "$root/usr/lib/chromium/chromium" "$@"
"""


def folder() -> DeviceFolder:
    """Where an unpacked one lies."""
    return DeviceFolder("browser", {})


def program() -> str | None:
    """Path of a Chromium; None when there is none."""
    if own := next(filter(None, map(shutil.which, _PROGRAMS)), None):
        return own
    unpacked = folder().path / "chromium"
    return str(unpacked) if folder().ready() and unpacked.is_file() else None


def absent() -> str | None:
    """Why it cannot be used now, with the remedy; None when it can."""
    if why := node.absent():
        return why.replace("devices setup node", "devices setup browser")
    return None if program() else "no Chromium here; set it up with: pocketdx devices setup browser"


def set_up(say: Callable[[str], None]) -> None:
    """Build the module and unpack a browser, whichever is missing.

    Raises:
        DeviceError: one of them cannot be had.
        OutputError: the cache folder cannot be written.
    """
    if node.absent() is not None:
        node.set_up(say)
    if program() is not None:
        return
    if why := debian.unavailable():
        raise DeviceError(f"browser: no Chromium here, and Debian's would run {why}; install one")
    place = folder()
    with folder_written_aside(place.path, overwrite=True, marker="ready.json") as aside:
        say("Debian's Chromium")
        # Only what the machine itself does not have.
        apt = debian.Apt.private(aside / "apt", debian.own_architecture(), status=_INSTALLED)
        packages = apt.with_dependencies("chromium")
        for package in packages:
            debian.unpack(package, aside / "root")
        (chromium,) = (each for each in packages if each.name.startswith("chromium_"))
        version = debian.version_of(chromium)
        for each in (aside / "apt", *(aside / "root" / unused for unused in _UNUSED)):
            shutil.rmtree(each, ignore_errors=True)
        (aside / "chromium").write_text(_LAUNCHER, "utf-8")
        (aside / "chromium").chmod(0o755)
        place.write_ready(aside, {"chromium": version})
