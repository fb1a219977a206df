"""How many CPUs this process may really use.

onnxruntime asks the machine, not the container: on a 64-core host it starts 64 threads in a container that
was granted 2 CPUs, which then spend their time throttled.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_ROOT = Path("/")


def granted_cpus(root: Path = _ROOT) -> int:
    """CPUs that affinity and control groups (v1 and v2) grant to this process, at least 1.

    A quota is rounded down: with more threads than CPUs of quota, all of them stand still when the quota of a
    period (100 ms) is used up, and each answer waits for the slowest thread.

    Args:
        root: where the file system starts; tests lay out their own.

    Sources: ``man 7 cgroups``; kernel documentation ``admin-guide/cgroup-v2`` (cpu.max) and
    ``scheduler/sched-bwc`` (cpu.cfs_quota_us).
    """
    try:
        quotas = _quotas(root)
    except (ValueError, IndexError, ArithmeticError):  # a /proc that is not as Linux documents it
        quotas = []
    return max(1, min([_affinity(), *map(int, quotas)]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Mount(NamedTuple):
    version: int
    shows: PurePosixPath  # the cgroup seen at the mount point; not "/" in a container on its host's namespace
    point: Path


def _quotas(root: Path) -> list[float]:
    """CPUs of every quota set on this process's cgroup or a parent of it: the tightest counts."""
    own = _own_cgroups(root)
    levels = [
        (mount.version, level)
        for mount in _mounts(root)
        if (path := own.get(mount.version)) is not None
        for level in _levels(mount, path)
    ]
    quotas = [_quota_v2(level) if version == 2 else _quota_v1(level) for version, level in levels]
    return [quota for quota in quotas if quota is not None]


def _levels(mount: _Mount, path: PurePosixPath) -> list[Path]:
    """Folders of a cgroup and its parents, as far up as the mount shows them."""
    inside = path.relative_to(mount.shows) if path.is_relative_to(mount.shows) else PurePosixPath()
    folder = mount.point / inside
    return [level for level in (folder, *folder.parents) if level.is_relative_to(mount.point)]


def _own_cgroups(root: Path) -> dict[int, PurePosixPath]:
    """This process's cgroup by version, from lines such as ``0::/a`` (v2) and ``4:cpu,cpuacct:/a`` (v1)."""
    own = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        # A process outside its namespace's root shows as /../x: then only the root is visible.
        parts = PurePosixPath("/") if ".." in path.split("/") else PurePosixPath(path)
        if number == "0" and not controllers:
            own[2] = parts
        elif "cpu" in controllers.split(","):
            own[1] = parts
    return own


def _mounts(root: Path) -> list[_Mount]:
    """Where cgroups with the CPU controller are mounted (``man 5 proc_pid_mountinfo``)."""
    mounts = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        shows, point = (_unescape(part) for part in before.split(" ")[3:5])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            mounts.append(_Mount(2 if kind == "cgroup2" else 1, PurePosixPath(shows), root / point.lstrip("/")))
    return mounts


def _quota_v2(cgroup: Path) -> float | None:
    lines = _lines(cgroup / "cpu.max")
    if not lines or lines[0].startswith("max"):
        return None
    quota, period = lines[0].split()
    return int(quota) / int(period)


def _quota_v1(cgroup: Path) -> float | None:
    quota = _lines(cgroup / "cpu.cfs_quota_us")
    period = _lines(cgroup / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux, or not there at this level
        return []


def _unescape(text: str) -> str:
    """Mountinfo writes space, tab, line feed and backslash as octal escapes."""
    for character in " \t\n\\":
        text = text.replace(f"\\{ord(character):03o}", character)
    return text
