"""`pocketdx devices`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketdx_export.backends import BACKENDS
from pocketdx_export.devices.setups import DEVICES
from pocketdx_runtime.cli import run


def test_it_lists_every_backend_and_why_one_is_not_available(
    no_devices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["devices"]) == 0
    shown = capsys.readouterr().out
    for backend in BACKENDS:
        assert f"\n{backend.name} " in f"\n{shown}"
    assert "not available: " in shown


def test_as_json_it_prints_json_alone(no_devices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", "--json"]) == 0
    rows = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {backend.name for backend in BACKENDS}
    assert rows["onnxruntime"] == {**rows["onnxruntime"], "available": True, "reason": None}
    assert rows["arm64-max"]["available"] is False
    assert rows["arm64-max"]["reason"]


def test_a_device_that_is_unknown_is_bad_usage(no_devices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", "setup", "amiga"]) == 2
    assert f"choose from: {', '.join(device.name for device in DEVICES)}" in capsys.readouterr().err


def test_all_devices_are_tried_and_each_that_fails_has_its_line(
    no_devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["devices", "setup", "arm64", "node"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "arm64" in errors[0]
    assert "node" in errors[1]


def test_what_is_ready_is_left_as_it_is(
    no_devices: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pocketdx_export.devices import arm64

    monkeypatch.setattr(arm64, "absent", lambda: None)
    monkeypatch.setattr(arm64, "set_up", lambda _: pytest.fail("set up again"))
    assert run(["devices", "setup", "arm64"]) == 0
    assert capsys.readouterr().out == "arm64: ready\n"
