"""What a machine says about itself, read from file trees as Linux lays them out."""

from pathlib import Path

import pytest

from pocketdx_runtime.machine import describe_machine

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu sse2 avx f16c avx2 fma vaes

processor\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu sse2 avx f16c avx2 fma vaes
"""
PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 asimdhp asimddp cpuid
CPU implementer\t: 0x41

Revision\t: d04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name", "flags"),
    [
        (X86, "AMD EPYC 7763 64-Core Processor", ("avx", "avx2", "fma", "f16c")),
        (PI, "Raspberry Pi 5 Model B Rev 1.0", ("asimd", "asimdhp", "asimddp")),
    ],
)
def test_name_and_relevant_flags_come_from_cpuinfo(
    tmp_path: Path, cpuinfo: str, name: str, flags: tuple[str, ...]
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    machine = describe_machine(tmp_path)
    assert (machine.cpu, machine.flags) == (name, flags)


def test_without_cpuinfo_there_is_still_a_name(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.cpu
    assert machine.flags == ()


def test_this_machine_is_described() -> None:
    import numpy as np
    import onnxruntime

    machine = describe_machine()
    assert machine.cpus >= 1
    assert machine.software["onnxruntime"] == onnxruntime.__version__
    assert machine.software["numpy"] == np.__version__
    assert set(machine.software) == {"python", "pocketdx", "onnxruntime", "numpy", "pillow"}
