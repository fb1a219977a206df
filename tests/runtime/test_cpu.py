"""The CPUs granted, read from file trees as Linux lays them out."""

import os
from pathlib import Path

import pytest

from pocketdx_runtime.cpu import granted_cpus

V2_MOUNT = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "36 23 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER_MOUNT = "24 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 CPUs, all open to this process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def lay_out(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    contents = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": f"{OTHER_MOUNT}\n{mounts}", **files}
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v2(root: Path, quotas: dict[str, str], own: str = "/") -> int:
    """CPUs granted to a process in the cgroup ``own``, with a cpu.max at some cgroups."""
    files = {f"sys/fs/cgroup{path.rstrip('/')}/cpu.max": text for path, text in quotas.items()}
    return granted_cpus(lay_out(root, f"0::{own}", V2_MOUNT, files))


def v1(root: Path, quotas: dict[str, tuple[int, int]], own: str = "/") -> int:
    files = {}
    for path, (quota, period) in quotas.items():
        folder = f"sys/fs/cgroup/cpu,cpuacct{path.rstrip('/')}"
        files[f"{folder}/cpu.cfs_quota_us"] = str(quota)
        files[f"{folder}/cpu.cfs_period_us"] = str(period)
    cgroup = f"12:pids:/elsewhere\n4:cpu,cpuacct:{own}\n1:name=systemd:/elsewhere"
    return granted_cpus(lay_out(root, cgroup, V1_MOUNT, files))


def test_without_control_groups_affinity_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert granted_cpus(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert granted_cpus(tmp_path) == 2


def test_where_the_system_knows_no_affinity_all_cpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert granted_cpus(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert granted_cpus(tmp_path) == 1


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 1),  # rounded down: a second thread would be throttled half of the time
        ("50000 100000", 1),
        ("10000 20000", 1),
        ("1600000 100000", 8),  # more quota than CPUs
    ],
)
def test_a_v2_quota_is_rounded_down_but_never_to_none(tmp_path: Path, cpu_max: str, cpus: int) -> None:
    assert v2(tmp_path, {"/": cpu_max}) == cpus


def test_the_tightest_v2_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    own = "/kubepods/pod1/container"
    quotas = {"/kubepods": "600000 100000", "/kubepods/pod1": "200000 100000", own: "400000 100000"}
    assert v2(tmp_path, quotas, own) == 2


def test_the_quota_of_a_neighbour_does_not_count(tmp_path: Path) -> None:
    assert v2(tmp_path, {"/other": "100000 100000", "/mine": "max 100000"}, "/mine") == 8


def test_a_container_on_its_hosts_cgroup_namespace_finds_its_quota_at_the_mount(tmp_path: Path) -> None:
    mount = "31 23 0:27 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
    files = {"sys/fs/cgroup/cpu.max": "300000 100000"}
    assert granted_cpus(lay_out(tmp_path, "0::/docker/abc", mount, files)) == 3


def test_a_cgroup_that_is_not_visible_falls_back_to_the_mount(tmp_path: Path) -> None:
    assert v2(tmp_path, {"/": "300000 100000"}, "/docker/abc") == 3
    assert v2(tmp_path, {"/": "300000 100000"}, "/../sibling") == 3


@pytest.mark.parametrize(
    ("quota", "cpus"), [((-1, 100000), 8), ((200000, 100000), 2), ((150000, 100000), 1), ((1000, 100000), 1)]
)
def test_a_v1_quota_is_rounded_down_but_never_to_none(tmp_path: Path, quota: tuple[int, int], cpus: int) -> None:
    assert v1(tmp_path, {"/": quota}) == cpus


def test_the_tightest_v1_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    assert v1(tmp_path, {"/a": (300000, 100000), "/a/b": (-1, 100000)}, "/a/b") == 3


def test_on_a_hybrid_system_the_version_with_the_quota_counts(tmp_path: Path) -> None:
    mounts = f"{V1_MOUNT}\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    assert granted_cpus(lay_out(tmp_path, "4:cpu,cpuacct:/\n0::/", mounts, files)) == 4


def test_affinity_and_quota_both_bind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert v2(tmp_path, {"/": "600000 100000"}) == 2


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    mount = r"31 23 0:27 / /my\040cgroups rw - cgroup2 cgroup2 rw"
    assert granted_cpus(lay_out(tmp_path, "0::/", mount, {"my cgroups/cpu.max": "200000 100000"})) == 2


@pytest.mark.parametrize("cpu_max", ["", "lots", "100000", "100000 0", "1e3 2"])
def test_a_quota_that_makes_no_sense_is_as_none(tmp_path: Path, cpu_max: str) -> None:
    assert v2(tmp_path, {"/": cpu_max}) == 8


def test_a_proc_that_makes_no_sense_is_as_none(tmp_path: Path) -> None:
    assert granted_cpus(lay_out(tmp_path, "nonsense", "1 2 3 - cgroup2", {})) == 8


def test_this_machine_grants_something() -> None:
    assert 1 <= granted_cpus() <= 8
