"""Setting a device up: what is missing is said in one line, and what fails leaves what was there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pocketdx_runtime
from pocketdx_export.devices import arm64, browser, debian, node, wheels
from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.folder import READY_FILE

Fake = Callable[[str, str], None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Only the programs that a test puts there are on the path: `programs(name, shell script)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def quiet(_: str) -> None:
    pass


# --- what is ready, and what is not ------------------------------------------------------------------------------


def test_nothing_is_ready_in_an_empty_cache_and_the_remedy_is_named(no_devices: Path) -> None:
    for device in (arm64, node, browser):
        name = device.__name__.rpartition(".")[2]
        why = device.absent()
        assert why is not None
        assert "not set up" in why or "not here" in why or "not installed" in why
        if "set it up" in why:
            assert f"pocketdx devices setup {name}" in why


def test_a_device_made_for_another_onnxruntime_is_stale(no_devices: Path) -> None:
    ready(no_devices / "arm64", {**arm64.folder().wanted, "onnxruntime": "1.2.3"})
    why = arm64.absent()
    assert why is not None
    assert "set up for onnxruntime 1.2.3, here it is" in why
    ready(no_devices / "arm64", dict(arm64.folder().wanted))
    assert arm64.absent() is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"wanted": 1, "versions": {}}'])
def test_a_damaged_record_counts_as_not_set_up(no_devices: Path, content: str) -> None:
    (no_devices / "arm64").mkdir(parents=True)
    (no_devices / "arm64" / READY_FILE).write_text(content)
    assert "not set up" in (arm64.absent() or "")


def test_a_change_in_the_runtimes_source_makes_node_stale_and_one_in_the_page_does_not(
    no_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Fake
) -> None:
    programs("node", "")
    checkout = tmp_path / "checkout" / "web"
    shutil.copytree(
        Path(pocketdx_runtime.__file__).parents[1] / "web", checkout, ignore=shutil.ignore_patterns("node_modules")
    )
    monkeypatch.setattr(pocketdx_runtime, "__file__", str(checkout.parent / "pocketdx_runtime" / "__init__.py"))
    ready(no_devices / "node", dict(node.folder().wanted))
    assert node.absent() is None
    (checkout / "index.html").write_text("another page")
    assert node.absent() is None
    (checkout / "src" / "core" / "model.ts").write_text("another model")
    assert "set up for runtime/web" in (node.absent() or "")


def test_an_installed_package_says_that_node_needs_a_checkout(
    no_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Fake
) -> None:
    programs("node", "")
    monkeypatch.setattr(pocketdx_runtime, "__file__", str(tmp_path / "site-packages/pocketdx_runtime/__init__.py"))
    for device in (node, browser):
        assert "only a checkout has" in (device.absent() or "")
        with pytest.raises(DeviceError, match="only a checkout has"):
            device.set_up(quiet)


def test_without_node_and_without_apt_the_missing_program_is_named(no_devices: Path, programs: Fake) -> None:
    assert "node is not installed" in (node.absent() or "")
    assert "apt-get is not here" in (arm64.absent() or "")
    with pytest.raises(DeviceError, match="arm64: only on Debian"):
        arm64.set_up(quiet)


def test_the_machines_own_browser_is_preferred(no_devices: Path, programs: Fake, tmp_path: Path) -> None:
    assert browser.program() is None
    programs("chromium", "")
    assert browser.program() == str(tmp_path / "bin" / "chromium")


# --- failing -----------------------------------------------------------------------------------------------------


def test_packages_that_are_not_to_be_had_are_an_error_that_leaves_nothing(no_devices: Path, programs: Fake) -> None:
    programs("apt-get", 'echo "Reading..."; echo "E: Unable to locate package python3-minimal" >&2; exit 100')
    programs("dpkg", "echo amd64")
    programs("dpkg-deb", "exit 1")
    with pytest.raises(DeviceError, match="E: Unable to locate package python3-minimal") as failed:
        arm64.set_up(quiet)
    assert "\n" not in str(failed.value)
    assert "package sources" in str(failed.value)
    assert not no_devices.exists() or not list(no_devices.iterdir())


def test_npm_that_fails_leaves_what_was_set_up_before(no_devices: Path, programs: Fake) -> None:
    if node._no_source():
        pytest.skip("no runtime/web here")
    programs("node", "echo v20.1.0")
    programs("npm", "echo 'npm error code ENOTFOUND' >&2; echo 'npm error more' >&2; exit 1")
    ready(no_devices / "node", {"runtime/web": "older"})
    with pytest.raises(DeviceError, match=r"npm failed with status 1 \(npm error code ENOTFOUND\)"):
        node.set_up(quiet)
    assert [each.name for each in no_devices.iterdir()] == ["node"]
    assert json.loads((no_devices / "node" / READY_FILE).read_text())["wanted"] == {"runtime/web": "older"}


def test_an_old_node_is_refused(no_devices: Path, programs: Fake) -> None:
    programs("node", "echo v18.20.4")
    with pytest.raises(DeviceError, match=r"this one is v18\.20\.4; install Node\.js 20 or newer"):
        node.set_up(quiet)


# --- apt and pip -------------------------------------------------------------------------------------------------


def test_apt_works_in_a_state_of_its_own_and_runs_no_hook_of_the_machine(tmp_path: Path, programs: Fake) -> None:
    log = tmp_path / "log"
    programs("apt-get", f'echo "$@" >> {log}')
    apt = debian.Apt.private(tmp_path / "apt", "arm64", "amd64")
    assert apt.with_dependencies("python3-minimal") == []
    settings = (tmp_path / "apt" / "apt.conf").read_text()
    for line in log.read_text().splitlines():
        assert line.startswith(f"-c {tmp_path}/apt/apt.conf ")
    assert "--download-only" in log.read_text()
    assert 'APT::Architectures { "arm64"; "amd64"; };' in settings
    assert f'Dir::State "{tmp_path}/apt"' in settings
    assert f'Dir::Cache "{tmp_path}/apt"' in settings
    assert "#clear APT::Update::Post-Invoke;" in settings


@pytest.mark.skipif(shutil.which("apt-config") is None, reason="no apt here")
def test_apt_itself_reads_these_settings(tmp_path: Path) -> None:
    from pocketdx_export.devices.programs import call

    settings = tmp_path / "apt.conf"
    text = debian._SETTINGS.format(
        architecture="arm64", architectures='"arm64";', folder=tmp_path, status=tmp_path / "status"
    )
    settings.write_text(text)
    read = call(["apt-config", "-c", settings, "dump"], remedy="")
    assert f'Dir::State::lists "{tmp_path}/lists";' in read
    assert 'APT::Architecture "arm64";' in read
    assert not [line for line in read.splitlines() if "Post-Invoke::" in line and not line.startswith("DPkg::Tools")]


def test_a_version_without_an_aarch64_wheel_gives_way_to_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pip that has numpy 2.0 and no such version of onnxruntime."""
    pip = tmp_path / "python"
    pip.write_text(
        f"#!{sys.executable}\n"
        "import sys, zipfile\n"
        "folder, *wanted = sys.argv[sys.argv.index('--dest') + 1:]\n"
        "if any(each == 'onnxruntime==9.9' for each in wanted):\n"
        "    sys.exit('ERROR: No matching distribution found for onnxruntime==9.9')\n"
        "for each in wanted:\n"
        "    name, _, version = each.partition('==')\n"
        "    with zipfile.ZipFile(f'{folder}/{name}-{version or \"1.0\"}-cp311-cp311-any.whl', 'w') as wheel:\n"
        "        wheel.writestr(f'{name}/__init__.py', '')\n"
    )
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    found = wheels.fetch_wheels({"numpy": "2.0", "onnxruntime": "9.9"}, "3.11", tmp_path / "scratch", tmp_path / "site")
    assert found == {"numpy": "2.0", "onnxruntime": "1.0"}
    assert (tmp_path / "site" / "onnxruntime" / "__init__.py").is_file()


def test_no_index_is_an_error_with_pips_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'ERROR: Could not connect' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(DeviceError, match="ERROR: Could not connect"):
        wheels.fetch_wheels({"numpy": "2.0"}, "3.11", tmp_path / "scratch", tmp_path / "site")


def ready(folder: Path, wanted: dict[str, str]) -> None:
    """Mark a folder as set up."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / READY_FILE).write_text(json.dumps({"wanted": wanted, "versions": {}}))
