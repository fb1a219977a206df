"""An ARM64 machine in a folder: Debian's arm64 Python and the aarch64 wheels, run by qemu's user mode.

No virtual machine, no container and no root: qemu translates one program's instructions and hands its system calls to
this kernel (https://www.qemu.org/docs/master/user/main.html). What is computed, rounded and saturated is what the
processor's instructions say; how long it takes says nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pocketdx_export.devices import debian
from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.folder import DeviceFolder
from pocketdx_export.devices.programs import call
from pocketdx_export.devices.wheels import fetch_wheels
from pocketdx_runtime.files import folder_written_aside

_QEMU = "qemu-aarch64"
# The interpreter, what its standard library and the wheels link to; apt adds what these depend on.
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_UNUSED = ("usr/share", "usr/sbin", "sbin", "var", "etc")


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        model: qemu's `-cpu`.
        shown: for people.
        features: as its `/proc/cpuinfo` lists them; what computes is decided by what qemu tells the program, not here.
        part: number in that file, by which libraries know the model.
        implementer: the same of its maker.
    """

    model: str
    shown: str
    features: str
    part: str
    implementer: str = "0x41"


_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
CPUS = {
    "cortex-a72": Cpu("cortex-a72", "Cortex-A72, as in a Raspberry Pi 4: plain NEON", _V8, "0xd08"),
    "cortex-a76": Cpu("cortex-a76", "Cortex-A76, as in a Raspberry Pi 5: dot product", _V82, "0xd0b"),
    # Pointer authentication with an algorithm that is cheap to emulate; no result depends on it.
    "max": Cpu(
        "max,pauth-impdef=on", "all that qemu knows: i8mm, bf16, SVE2, SME", f"{_V82} i8mm bf16", "0x051", "0x00"
    ),
}


def folder() -> DeviceFolder:
    """Where it lies; it follows this machine's onnxruntime and NumPy, and LiteRT where that is installed."""
    return DeviceFolder("arm64", {name: _installed(name) for name in ("onnxruntime", "numpy", "ai-edge-litert")})


def unavailable() -> str | None:
    """Why it cannot be set up on this machine; None when it can."""
    return debian.unavailable()


def absent() -> str | None:
    """Why it cannot be used now, with the remedy; None when it can."""
    stale = folder().stale()
    return stale and (unavailable() or stale)


def versions() -> dict[str, str]:
    """Of qemu and of the packages, where it is set up."""
    return dict((folder().ready() or {}).get("versions", {}))


def command(cpu: str, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """How to run the ARM64 Python.

    Args:
        cpu: of `CPUS`.
        arguments: of the interpreter.

    Returns:
        The command, and all of its environment.
    """
    return _command(folder().path, cpu, arguments)


def set_up(say: Callable[[str], None]) -> None:
    """Fetch and unpack everything, see that it computes, and put it in its place; as a whole or not at all.

    Raises:
        DeviceError: something cannot be had or does not run.
        OutputError: the cache folder cannot be written.
    """
    if why := unavailable():
        raise DeviceError(f"arm64: {why}")
    place = folder()
    with folder_written_aside(place.path, overwrite=True, marker="ready.json") as aside:
        scratch = aside / "scratch"
        scratch.mkdir()
        root = aside / "root"
        say("Debian's arm64 Python")
        apt = debian.Apt.private(scratch / "apt", "arm64", debian.own_architecture())
        for package in apt.with_dependencies(*_PACKAGES):
            debian.unpack(package, root)
        for name in ("bin", "lib"):  # since Debian 13 packages have these in usr alone
            if not (root / name).exists():
                (root / name).symlink_to(f"usr/{name}")
        python = _python(root)
        say("qemu")
        versions = {"python": python, "qemu": _unpack_qemu(apt, aside / _QEMU)}
        say("aarch64 wheels of onnxruntime, NumPy and LiteRT")
        versions |= fetch_wheels(dict(place.wanted), python, scratch / "wheels", aside / "site")
        for each in (scratch, *(root / unused for unused in _UNUSED)):
            shutil.rmtree(each, ignore_errors=True)
        for name, cpu in CPUS.items():
            _write_cpu(aside / "cpus" / name, cpu)
        say("first start, which compiles what is imported")
        _try(aside)
        place.write_ready(aside, versions)


def _command(path: Path, cpu: str, arguments: tuple[str | Path, ...]) -> tuple[list[str], dict[str, str]]:
    root = path / "cpus" / cpu
    interpreter = root / "usr" / "bin" / f"python{_python(path / 'root')}"
    # Not this machine's site-packages: -S and -s; not the script's own folder: -P.
    words = [path / _QEMU, "-cpu", CPUS[cpu].model, "-L", root, interpreter, "-S", "-s", "-P", *arguments]
    environment = {"PYTHONPATH": str(path / "site"), "PYTHONHASHSEED": "0", "HOME": os.environ.get("HOME", "/")}
    return [str(word) for word in words], environment


def _unpack_qemu(apt: debian.Apt, target: Path) -> str:
    """The emulator, built for this machine, statically linked; returns its package's version."""
    here = debian.own_architecture()
    package = apt.alone(f"qemu-user-static:{here}")
    try:
        debian.unpack_file(package, "usr/bin/qemu-aarch64-static", target)
    except DeviceError:  # since Debian 13 the static programs are those of qemu-user, without the ending
        package = apt.alone(f"qemu-user:{here}")
        debian.unpack_file(package, "usr/bin/qemu-aarch64", target)
    target.chmod(0o755)
    return debian.version_of(package)


def _write_cpu(folder: Path, cpu: Cpu) -> None:
    """A root like the common one, but with this processor's cpuinfo.

    Without an ARM cpuinfo the library by which onnxruntime looks at the processor reads this machine's, and crashes.
    """
    (folder / "proc").mkdir(parents=True)
    for each in ("usr", "lib", "bin"):
        (folder / each).symlink_to(Path("..", "..", "root", each))
    text = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {cpu.features}\nCPU implementer\t: {cpu.implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {cpu.part}\nCPU revision\t: 0\n"
    )
    processors = "".join(f"processor\t: {number}\n{text}\n" for number in range(os.cpu_count() or 1))
    (folder / "proc" / "cpuinfo").write_text(f"{processors}Model\t\t: qemu {cpu.model.partition(',')[0]}\n", "utf-8")


def _try(path: Path) -> None:
    words, environment = _command(path, "cortex-a76", ("-c", "import numpy, onnxruntime, ai_edge_litert.interpreter"))
    call(["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *words], remedy="report this")


def _python(root: Path) -> str:
    found = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))
    if not found:
        raise DeviceError(f"{root}: no Python in it; set it up with: pocketdx devices setup arm64")
    return found[0].name.removeprefix("python")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
