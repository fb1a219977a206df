"""Packages of Debian for a folder of ours: another architecture's, without root, the machine's own state untouched.

apt is given a state of its own (`man 5 apt.conf`, Dir::State and Dir::Cache): lists and downloads lie in a scratch
folder, and its record of installed packages is empty, so that what it resolves is complete. Where packages come from
stays as the machine's administrator has set it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.programs import call

_REMEDY = "this machine's package sources must be reachable and hold these packages"
# The administrator's hooks would act on the machine: empty its own package cache, notify its desktop.
_SETTINGS = """\
APT::Architecture "{architecture}";
APT::Architectures {{ {architectures} }};
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
Acquire::Languages "none";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{status}";
Dir::Cache "{folder}";
"""


def unavailable() -> str | None:
    """Why Debian's packages cannot be unpacked on this machine; None when they can."""
    if sys.platform != "linux":
        return "only on Debian and its like: it is made of Debian's packages"
    missing = [each for each in ("apt-get", "dpkg-deb") if shutil.which(each) is None]
    return f"only on Debian and its like: {missing[0]} is not here" if missing else None


@dataclass(frozen=True)
class Apt:
    """A private state of apt.

    Attributes:
        folder: that holds it; made by `private`.
    """

    folder: Path

    @classmethod
    def private(cls, folder: Path, *architectures: str, status: Path | None = None) -> Apt:
        """Make a state in the new folder `folder` and fetch the lists of packages.

        Args:
            folder: becomes scratch space of apt.
            architectures: Debian's names of them; the first is that of a package whose name does not say.
            status: list of the packages that count as installed; none without it.
        """
        for each in ("lists/partial", "archives/partial"):
            (folder / each).mkdir(parents=True)
        (folder / "status").touch()
        settings = _SETTINGS.format(
            architecture=architectures[0],
            architectures=" ".join(f'"{each}";' for each in dict.fromkeys(architectures)),
            folder=folder.absolute(),
            status=status or folder.absolute() / "status",
        )
        (folder / "apt.conf").write_text(settings, "utf-8")
        apt = cls(folder)
        # A source that is down or lacks this architecture is none of our business unless a package is missed later.
        subprocess.run(apt._command("apt-get", "update", "-q"), capture_output=True, timeout=300, check=False)
        return apt

    def with_dependencies(self, *packages: str) -> list[Path]:
        """Download packages and all that they depend on.

        Raises:
            DeviceError: one is not to be had.
        """
        options = ("--download-only", "--no-install-recommends", "--yes", "-q")
        call(self._command("apt-get", "install", *options, *packages), remedy=_REMEDY)
        return sorted((self.folder / "archives").glob("*.deb"))

    def alone(self, name: str) -> Path:
        """Download a package without its dependencies.

        Raises:
            DeviceError: it is not to be had.
        """
        folder = self.folder / "alone" / name.partition(":")[0]
        folder.mkdir(parents=True)
        call(self._command("apt-get", "download", "-q", name), cwd=folder, remedy=_REMEDY)
        return next(folder.glob("*.deb"))

    def _command(self, program: str, *arguments: str) -> list[str]:
        # -c and not $APT_CONFIG: it is read after the machine's own settings, and so can clear some of them.
        return [program, "-c", str(self.folder.absolute() / "apt.conf"), *arguments]


def unpack(package: Path, folder: Path) -> None:
    """Unpack a package's files into a folder; nothing of it is run."""
    call(["dpkg-deb", "--extract", package, folder], remedy="the download is damaged; try again")


def unpack_file(package: Path, member: str, target: Path) -> None:
    """Write one file of a package to `target`.

    Args:
        package: a `.deb`.
        member: path in it, from "usr/" on.
        target: where its content goes.

    Raises:
        DeviceError: it is not in the package.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
        done = subprocess.run(
            ["tar", "--extract", "--to-stdout", f"./{member}"], stdin=archive.stdout, capture_output=True, check=False
        )
    if done.returncode != 0 or not done.stdout:
        raise DeviceError(f"{package.name}: no {member} in it; {_REMEDY}")
    target.write_bytes(done.stdout)


def version_of(package: Path) -> str:
    """Version of a `.deb`."""
    return call(["dpkg-deb", "--field", package, "Version"], remedy="the download is damaged; try again").strip()


def own_architecture() -> str:
    """Debian's name of this machine's architecture: "amd64", ..."""
    return call(["dpkg", "--print-architecture"], remedy=_REMEDY).strip()
