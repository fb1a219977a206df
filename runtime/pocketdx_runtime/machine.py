"""What this machine is: results of int8 and fp16 arithmetic depend on it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pocketdx_runtime.cpu import granted_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping

# Instruction sets that select onnxruntime's kernels: x86 float, x86 int8, ARM.
_RELEVANT = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16"),
    *("avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8"),
    *("asimd", "neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The processor, and the software that computes.

    Attributes:
        cpu: its name, as far as the system tells.
        architecture: "x86_64", "aarch64", ...
        flags: the instruction sets that matter to onnxruntime, out of those it has.
        cpus: that this process may use.
        system: kernel and release.
        software: versions by package name.
    """

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    cpus: int
    system: str
    software: Mapping[str, str]


def describe_machine(root: Path = Path("/")) -> Machine:
    """Look around; ``root`` is where the file system starts."""
    name, flags = _cpu(root)
    packages = ("pocketdx", "onnxruntime", "numpy", "pillow")
    return Machine(
        cpu=name or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        flags=tuple(flag for flag in _RELEVANT if flag in flags),
        cpus=granted_cpus(root),
        system=f"{platform.system()} {platform.release()}",
        software={"python": platform.python_version(), **{each: _version(each) for each in packages}},
    )


def _cpu(root: Path) -> tuple[str, set[str]]:
    """Name and flags from Linux's /proc/cpuinfo: "model name" and "flags" on x86, "Model", "Features" on ARM."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return "", set()
    fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
    name = next((fields[key] for key in ("model name", "Model", "Hardware") if fields.get(key)), "")
    return name, set((fields.get("flags") or fields.get("Features") or "").split())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
