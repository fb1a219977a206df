"""The built page in the package: the one its source gives, small, and made of nothing that is not ours to hand on."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketdx_serve.pages import WEB

SOURCE = Path(__file__).resolve().parents[2] / "runtime/web"
MOST_BYTES = 250_000
"""Of own JavaScript and CSS, compressed: issue 5."""
COMMENTS = {"http://www.w3.org", "https://web.dev", "https://rolldown.rs"}
"""Hosts in names of XML and in messages of the engine and the bundler."""


def built(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.startswith("engine/")}


@pytest.mark.slow
def test_the_page_in_the_package_is_what_its_source_gives(npm: Callable[..., str], tmp_path: Path) -> None:
    npm("exec", "vite", "build", POCKETDX_WEB_OUT=str(tmp_path / "web"))
    fresh, kept = built(tmp_path / "web"), built(WEB)
    assert sorted(fresh) == sorted(kept), "run `make web` and commit what it writes"
    assert [name for name in fresh if fresh[name] != kept[name]] == [], "run `make web` and commit what it writes"


def test_the_types_hold(npm: Callable[..., str]) -> None:
    npm("run", "check")


def test_the_page_stays_within_its_budget() -> None:
    code = {name: data for name, data in built(WEB).items() if name.endswith((".js", ".css"))}
    assert len(code) >= 4  # page, worker, service worker, style
    assert sum(len(gzip.compress(data)) for data in code.values()) < MOST_BYTES


def test_the_page_refers_to_nothing_elsewhere() -> None:
    """No address of another host is ever fetched: a clinic has no internet."""
    for name, data in built(WEB).items():
        if name.endswith((".js", ".css", ".html", ".webmanifest", ".svg")):
            addresses = set(re.findall(r"https?://[\w.-]+", data.decode()))
            assert addresses <= COMMENTS, name


def test_the_service_worker_keeps_every_file_of_the_page_but_the_engine() -> None:
    listed = re.search(r'JSON\.parse\((".*?[^\\]")\)', (WEB / "sw.js").read_text())
    assert listed is not None
    assert set(json.loads(json.loads(listed[1]))["files"]) == {*built(WEB)} - {"sw.js"}


def test_the_lockfile_names_no_host() -> None:
    packages = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert len(packages) > 10
    assert not any("resolved" in each for each in packages.values())
    assert all("integrity" in each for name, each in packages.items() if name)
