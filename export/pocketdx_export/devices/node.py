"""PocketDx's runtime for the web as a module that Node and browsers load, built from its source in the checkout."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pocketdx_runtime
from pocketdx_export.devices.errors import DeviceError
from pocketdx_export.devices.folder import DeviceFolder
from pocketdx_export.devices.programs import call
from pocketdx_runtime.files import folder_written_aside

_ENGINE = "onnxruntime-web"
_NODE_REMEDY = "install Node.js 20 or newer, with npm"
_NPM_REMEDY = "npm must be installed here and reach a registry"
# What it is built from; the page, which lies beside it, is not.
_SOURCES = ("package.json", "package-lock.json", ".npmrc", "tsconfig.json", "vite.runner.config.ts", "src/runner.ts")


def folder() -> DeviceFolder:
    """Where the built module lies; it follows its source."""
    source = _source()
    return DeviceFolder("node", {"runtime/web": _digest(source)} if source else {})


def runner() -> Path:
    """Folder of the built module, `pocketdx.js`, and the engine's files."""
    return folder().path / "runner"


def versions() -> dict[str, str]:
    """Of the engine that it was built with, where it is set up."""
    return dict((folder().ready() or {}).get("versions", {}))


def absent() -> str | None:
    """Why it cannot be used now, with the remedy; None when it can."""
    if shutil.which("node") is None:
        return f"node is not installed; {_NODE_REMEDY}"
    stale = folder().stale()
    return stale and (_no_source() or stale)


def set_up(say: Callable[[str], None]) -> None:
    """Build the module aside and put it in its place.

    Raises:
        DeviceError: there is no source, no Node, or npm fails.
        OutputError: the cache folder cannot be written.
    """
    source = _source()
    if source is None:
        raise DeviceError(f"node: {_no_source()}")
    version = call(["node", "--version"], remedy=_NODE_REMEDY).strip()
    if int(version.lstrip("v").partition(".")[0]) < 20:
        raise DeviceError(f"node: this one is {version}; {_NODE_REMEDY}")
    place = folder()
    with folder_written_aside(place.path, overwrite=True, marker="ready.json") as aside:
        build = aside / "build"
        for path in _inputs(source):
            target = build / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        say("npm packages")
        call(["npm", "ci", "--no-audit", "--no-fund"], cwd=build, remedy=_NPM_REMEDY)
        say("build")
        call(["npm", "run", "build:runner"], cwd=build, remedy="see whether `make test` passes in the checkout")
        (build / "dist" / "runner").rename(aside / "runner")
        engine = json.loads((build / "node_modules" / _ENGINE / "package.json").read_text("utf-8"))["version"]
        shutil.rmtree(build)
        place.write_ready(aside, {_ENGINE: engine})


def _source() -> Path | None:
    folder = Path(pocketdx_runtime.__file__).parents[1] / "web"
    return folder if (folder / "package-lock.json").is_file() else None


def _no_source() -> str | None:
    return None if _source() else "built from runtime/web, which only a checkout has: pip install --editable CHECKOUT"


def _inputs(source: Path) -> list[Path]:
    return [*(source / name for name in _SOURCES), *sorted((source / "src" / "core").rglob("*.ts"))]


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for path in _inputs(source):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
