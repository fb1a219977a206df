"""The table of devices that can be set up, and what `pocketdx devices` says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast


class Home(Protocol):
    """What sets a device up."""

    def absent(self) -> str | None:
        """Why it cannot be used now, with the remedy; None when it can."""

    def set_up(self, say: Callable[[str], None]) -> None:
        """Fetch what it is made of; as a whole or not at all. Raises DeviceError."""


@dataclass(frozen=True)
class Device:
    """A device that is simulated here.

    Attributes:
        name: on the command line, and of its module in this package, see `Home`.
        shown: for people.
    """

    name: str
    shown: str

    def home(self) -> Home:
        """Import what sets it up: the module of its name."""
        return cast("Home", import_module(f"pocketdx_export.devices.{self.name}"))


DEVICES = (
    Device("arm64", "an ARM64 Linux machine: Debian's Python under qemu's user mode"),
    Device("task_library", "TensorFlow Lite Support's Task library, in an environment of its own"),
    Device("node", "the runtime for the web, in Node"),
    Device("browser", "the runtime for the web, in headless Chromium"),
)
