"""Where a device lies once it is set up, and whether what lies there still fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketdx_train.cache import default_cache_folder

READY_FILE = "ready.json"


@dataclass(frozen=True)
class DeviceFolder:
    """A device's folder in the cache.

    Attributes:
        name: of the device, as in `pocketdx devices setup NAME`.
        wanted: versions that it should have been made for; another value of any of them makes it stale.
    """

    name: str
    wanted: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Of the folder, which need not be there."""
        return devices_cache() / self.name

    def ready(self) -> Mapping[str, Any] | None:
        """What was written when it was set up: "wanted" and "versions"; None when it was not, or is damaged."""
        try:
            content = json.loads((self.path / READY_FILE).read_text("utf-8"))
            return content if isinstance(content["wanted"], dict) and isinstance(content["versions"], dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def stale(self) -> str | None:
        """Why it must be set up (again), with the command; None when it is as wanted."""
        content = self.ready()
        remedy = f"set it up with: pocketdx devices setup {self.name}"
        if content is None:
            return f"not set up; {remedy}"
        for name, version in self.wanted.items():
            found = content["wanted"].get(name)
            if found != version:
                return f"set up for {name} {found}, here it is {version}; {remedy}"
        return None

    def write_ready(self, folder: Path, versions: Mapping[str, str]) -> None:
        """Mark `folder`, which is about to become this one, as whole; `versions` are those that it got."""
        content = {"wanted": dict(self.wanted), "versions": dict(versions)}
        (folder / READY_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def devices_cache() -> Path:
    """`devices` in the cache folder of all of PocketDx: `$POCKETDX_CACHE`, else the user's."""
    return default_cache_folder().absolute() / "devices"
