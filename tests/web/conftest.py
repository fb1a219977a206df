"""The real page from a real server, in Debian's Chromium; and the core of it in Node."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pocketdx_serve.pages import WEB
from tiny_model import tiny_model
from web_pictures import drawn, with_gamma
from web_stage import Bundle, Screen, Served, Stage, serving, write_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SOURCE = Path(__file__).resolve().parents[2] / "runtime/web"
NODE_MODULES = SOURCE / "node_modules"
TOLERANCES = {"logits": 1e-4, "probabilities": 1e-4, "embedding": 1e-4}
# The machine's own network is closed: without the switches against background traffic Chromium tries it again and
# again. The fake camera shows a moving pattern.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


# --- Node -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def npm() -> Callable[..., str]:
    """``npm("run", "build")`` in runtime/web; the test is skipped where its packages are not installed."""
    if shutil.which("npm") is None or not (NODE_MODULES / "vite").is_dir():
        pytest.skip("needs npm and runtime/web/node_modules: run `make web`")

    def run(*arguments: str, **environment: str) -> str:
        command = ["npm", "--silent", *arguments]
        done = subprocess.run(
            command, cwd=SOURCE, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def node(npm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``node("resize", pixels=array, size=8)``: what a function of the core gives, by tests/web/core.mjs."""
    npm("run", "build:runner")
    folder = tmp_path_factory.mktemp("node")

    def call(operation: str, **arguments: Any) -> Any:
        plain: dict[str, Any] = {}
        for key, value in arguments.items():
            if isinstance(value, bytes):
                path = folder / key
                path.write_bytes(value)
                plain[key] = str(path)
            else:
                plain[key] = value
        command = ["node", str(Path(__file__).with_name("core.mjs")), operation, json.dumps(plain)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


# --- The server -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), tiny_model())


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built page of the package, with the engine, which is not in the repository."""
    folder = tmp_path_factory.mktemp("web") / "web"
    shutil.copytree(WEB, folder)
    if not any(folder.glob("engine/*.wasmz")):
        engine = NODE_MODULES / "onnxruntime-web"
        if not engine.is_dir():
            pytest.skip("needs runtime/web/node_modules/onnxruntime-web: run `make web`")
        version = json.loads((engine / "package.json").read_text())["version"]
        wasm = (engine / "dist/ort-wasm-simd-threaded.wasm").read_bytes()
        (folder / "engine").mkdir(exist_ok=True)
        (folder / f"engine/onnxruntime-web-{version}.wasmz").write_bytes(gzip.compress(wasm, 1))
    return folder


@pytest.fixture(scope="session")
def server(bundle: Bundle, web: Path) -> Iterator[Served]:
    with serving({"tiny": bundle.path}, web) as served:
        yield served


# --- The browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")  # its event loop is in the way of every asyncio.run, as long as it lasts
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def stage(browser: Browser, web: Path) -> Iterator[Stage]:
    """Browsers that have never seen the page, and servers that come and go; all closed after the test."""
    with ExitStack() as stack:
        yield Stage(browser, web, stack)


@pytest.fixture
def screen(stage: Stage, server: Served) -> Callable[..., Screen]:
    """``screen(server.url)``: the page, opened and ready, in a browser that has never seen it."""
    return lambda url, state="ready", **options: stage.screen(stage.browser(**options)).open(url, state)


# --- Pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kinds of picture files that are read in different ways, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = drawn(90, 70, 4).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.png": (drawn(90, 70), {}),
        "small.png": (drawn(20, 13), {}),
        "grey.png": (drawn(90, 70).convert("L"), {}),
        "palette.png": (drawn(90, 70).quantize(64), {}),
        "alpha.png": (alpha, {}),
        "gamma.png": (drawn(90, 70), {}),
        "photo.jpg": (drawn(400, 300, 1), {"quality": 92}),
        "turned.jpg": (drawn(400, 300, 2), {"quality": 92, "exif": turned}),
        "progressive.jpg": (drawn(300, 200, 3), {"quality": 92, "progressive": True}),
        "lossless.webp": (drawn(90, 70, 5), {"lossless": True}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    (folder / "gamma.png").write_bytes(with_gamma((folder / "gamma.png").read_bytes()))
    return {path.name: path for path in folder.iterdir()}
