"""The audit log: what it holds, what it does not, and that nobody can change it unseen."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pocketdx_runtime.model import Model
from pocketdx_serve import audit as audit_module
from pocketdx_serve.audit import AuditKey, AuditLog, head_of, verify
from pocketdx_serve.errors import AuditError, ServeError
from pocketdx_serve.keys import KeyRing

Serve = Callable[..., Any]
SECRET = "s" * 32
WARD = "w" * 32
KEY = AuditKey(SECRET)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, count: int = 5) -> Path:
    log = AuditLog(path, KEY)
    for number in range(count):
        log.record("ward", "d" * 64, "NORMAL", b"image %d" % number)
    log.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def test_a_line_for_each_image_says_who_when_which_model_and_what_it_said_and_nothing_else(
    serve: Serve, path: Path, jpeg: bytes, make_picture: Any, model: Model, tmp_path: Path
) -> None:
    ring = KeyRing(text=f"ward {WARD}")
    live = serve(audit=AuditLog(path, KEY), keys=ring)
    me = {"X-API-Key": WARD}
    files = [("image", ("smith.jpg", jpeg)), ("image", make_picture(5))]
    assert live.client.post("/v1/diagnose", files=files, headers=me).status_code == 200
    assert live.post("/v1/embed", jpeg, **me).status_code == 200
    assert live.post("/v1/diagnose", b"not an image", **me).status_code == 415
    pixels = np.full((1, 2, 2, 3), 7, np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": pixels.ravel().tolist()}
    v2 = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
    assert live.client.post("/v2/models/tiny/infer", json=v2, headers=me).status_code == 200
    lines = entries(path)
    assert len(lines) == 4
    assert all(set(each) == {"n", "time", "who", "model", "verdict", "image", "mac"} for each in lines)
    assert {(each["who"], each["model"]) for each in lines} == {("ward", model.digest)}
    by_image = {each["image"]: each["verdict"] for each in lines if each["verdict"]}
    for data in (jpeg, make_picture(5)):
        assert by_image[KEY.image(data)] == model.diagnose([data])[0].label
    assert [each["verdict"] for each in lines].count(None) == 1, "an embedding has no verdict"
    assert lines[3]["image"] == KEY.image(pixels.tobytes())
    assert lines[3]["verdict"] in model.manifest.labels
    assert "smith" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    outcome = verify(path, KEY)
    assert outcome
    assert (outcome.lines, outcome.mac) == (4, lines[3]["mac"])


def test_many_threads_write_one_chain(path: Path) -> None:
    log = AuditLog(path, KEY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: log.record("a", "d", None, b"%d" % n), range(200)))
    log.close()
    assert verify(path, KEY).lines == 200


def test_a_log_goes_on_where_it_stopped(path: Path) -> None:
    written(path)
    written(path)
    assert verify(path, KEY).lines == 10


def change(old: str, new: str) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [lines[0], lines[1].replace(old.encode(), new.encode()), *lines[2:]]


@pytest.mark.parametrize(
    "tamper",
    [
        change("NORMAL", "SICK"),
        change("ward", "lab"),
        change('{"n"', '{ "n"'),
        lambda lines: lines[1:],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines, b"{}\n"],
        lambda lines: [*lines, b"[]\n"],
        lambda lines: [*lines[:-1], lines[-1][:-1]],
        lambda lines: lines[:-1],
        lambda lines: lines[:0],
    ],
    ids=["verdict", "who", "space", "first", "middle", "order", "twice", "added", "array", "newline", "last", "all"],
)
def test_whatever_is_changed_added_moved_or_cut_off_is_found(
    path: Path, tamper: Callable[[list[bytes]], list[bytes]]
) -> None:
    lines = written(path).read_bytes().splitlines(keepends=True)
    assert verify(path, KEY)
    path.write_bytes(b"".join(tamper(lines)))
    outcome = verify(path, KEY)
    assert not outcome
    assert outcome.problem


def test_every_changed_byte_is_found(path: Path) -> None:
    data = written(path, 2).read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not verify(path, KEY), at


def test_a_chain_made_with_another_key_is_found(path: Path) -> None:
    written(path)
    assert not verify(path, AuditKey("t" * 32))
    with pytest.raises(ServeError, match="not of this key"):
        AuditLog(path, AuditKey("t" * 32))


def test_who_cuts_off_the_end_and_removes_or_restores_the_head_is_found(path: Path) -> None:
    written(path, 3)
    old = (path.read_bytes(), head_of(path).read_bytes())
    written(path, 2)
    known = verify(path, KEY)
    path.write_bytes(old[0])
    assert "missing at the end" in str(verify(path, KEY).problem)
    with pytest.raises(ServeError, match="missing at its end"):
        AuditLog(path, KEY)
    head_of(path).unlink()
    assert "head is missing" in str(verify(path, KEY).problem)
    head_of(path).write_bytes(old[1])
    assert verify(path, KEY), "the state of an earlier day, whole: only what was kept elsewhere shows it"
    assert "missing at the end" in str(verify(path, KEY, (known.lines, known.mac)).problem)


def test_a_half_line_of_a_power_cut_is_cut_off_and_the_log_goes_on(path: Path) -> None:
    lines = written(path).read_bytes()
    path.write_bytes(lines + lines[:100])
    assert not verify(path, KEY)
    written(path, 1)
    assert verify(path, KEY).lines == 6


def test_two_servers_cannot_write_one_log(path: Path) -> None:
    log = AuditLog(path, KEY)
    with pytest.raises(ServeError, match="another server"):
        AuditLog(path, KEY)
    log.close()


def test_a_full_disk_gives_503_and_no_answer_and_leaves_the_log_whole(
    serve: Serve, path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = serve(audit=AuditLog(path, KEY))
    assert live.post("/v1/diagnose", jpeg).status_code == 200
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 100:
            return write(file, data[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(audit_module.os, "write", half)
        reply = live.post("/v1/diagnose", jpeg)
    assert (reply.status_code, reply.json()["reason"]) == (503, "audit-unavailable")
    assert "label" not in reply.text
    assert live.post("/v1/diagnose", jpeg).status_code == 200
    assert verify(path, KEY).lines == 2


def test_a_device_that_is_full_is_an_error_of_its_own(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", KEY)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file)
    with pytest.raises(AuditError, match="No space left"):
        log.record("a", "d", None, b"x")


def test_what_was_answered_before_a_kill_is_in_the_log(
    process: Callable[..., Any], path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETDX_AUDIT_KEY", SECRET)
    server = process("--audit", str(path))
    for _ in range(3):
        assert httpx.post(f"{server.url}/v1/diagnose", files={"image": jpeg}, trust_env=False).status_code == 200
    server.popen.send_signal(signal.SIGKILL)
    server.finish()
    assert verify(path, KEY).lines == 3


def test_the_command_verifies_with_status_0_and_1(
    pocketdx: Callable[..., subprocess.CompletedProcess[str]], path: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(SECRET + "\n")
    options = ("--key", str(tmp_path / "key"))
    written(path)
    good = pocketdx("audit", "verify", str(path), *options)
    assert (good.returncode, good.stderr) == (0, "")
    anchor = good.stdout.split("--expect ")[1].strip()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    bad = pocketdx("audit", "verify", str(path), *options, "--expect", anchor, "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["whole"] is False
    assert pocketdx("audit", "verify", str(path)).returncode == 2, "no key"
    assert pocketdx("audit", "verify", str(tmp_path / "none"), *options).returncode == 2
    assert pocketdx("audit", "verify", str(path), *options, "--expect", "x").returncode == 2
