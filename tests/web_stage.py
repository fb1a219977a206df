"""A server with the page, and a browser that looks at it: what the tests of the page stand on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from numpy.typing import NDArray

from pocketdx_runtime.model import Model
from pocketdx_serve.app import create_app
from pocketdx_serve.keys import KeyRing
from pocketdx_serve.server import listen, server_for, url_of
from pocketdx_serve.settings import Settings
from tiny_model import tiny_manifest, tiny_model, tiny_model_proto

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

TOLERANCES = {"logits": 1e-4, "probabilities": 1e-4, "embedding": 1e-4}


@dataclass
class Bundle:
    """A model file with golden inputs beside it."""

    path: Path
    model: Model

    @property
    def golden(self) -> Path:
        return self.path.with_name("golden.npz")


def write_bundle(folder: Path, proto: bytes) -> Bundle:
    """Write a model and golden inputs whose answers are Python's own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(proto)
    model = Model(path, threads=1).load()
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((32, 32), (50, 41))]
    answers = [model.run(image[None], list(TOLERANCES)) for image in images]
    arrays: dict[str, NDArray[Any]] = {f"image_{index:04d}": image for index, image in enumerate(images)}
    arrays |= {name: np.concatenate([answer[name] for answer in answers]) for name in TOLERANCES}
    arrays["tolerances"] = np.array(json.dumps({"fp32": TOLERANCES}))
    np.savez_compressed(path.with_name("golden.npz"), **arrays)  # type: ignore[arg-type]
    return Bundle(path, model)


def with_heatmap() -> bytes:
    """The tiny model with two of its feature maps as the output `heatmap`."""
    from onnx import TensorProto, helper, numpy_helper

    proto = tiny_model_proto()
    graph = proto.graph
    for name, value in {"first": [0], "last": [2], "channels": [1]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.node.append(helper.make_node("Slice", ["active", "first", "last", "channels"], ["heatmap"]))
    graph.output.append(helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["N", 2, "h", "w"]))
    outputs = ("logits", "probabilities", "embedding", "heatmap")
    replace(tiny_manifest(), outputs=outputs).write_to(proto)
    return bytes(proto.SerializeToString())


@dataclass
class Served:
    """A server in a thread of this process."""

    url: str
    requests: list[tuple[str, str]] = field(default_factory=list)

    def posts(self) -> list[str]:
        return [path for method, path in self.requests if method == "POST"]


@contextmanager
def serving(models: Mapping[str, Path], web: Path, port: int = 0, keys: KeyRing | None = None) -> Iterator[Served]:
    """Serve models, by name, and the page until the block ends."""
    opened = {name: Model(path, threads=1) for name, path in models.items()}
    app = create_app(opened, Settings(), web=web, keys=keys)
    served = Served("")

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            served.requests.append((scope["method"], scope["path"]))
        await app(scope, receive, send)

    sock = listen("127.0.0.1", port)
    served.url = url_of(sock)
    server = server_for(app)
    server.config.app = counted
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while httpx.get(f"{served.url}/readyz", trust_env=False).status_code != 200:
            assert time.monotonic() < end, "the server did not get ready"
            time.sleep(0.02)
        yield served
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


class Screen:
    """The page as a user sees it. Waits instead of sleeping; there are no timed assertions."""

    def __init__(self, page: Page) -> None:
        from playwright.sync_api import expect

        self.page = page
        self.expect = expect
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, url: str, state: str | None = "ready") -> Screen:
        self.page.goto(url)
        if state is not None:
            self.wait_for(state)
        return self

    def wait_for(self, state: str) -> Screen:
        self.expect(self.page.locator("#status")).to_have_attribute("data-state", state, timeout=60_000)
        return self

    def choose_mode(self, name: str) -> None:
        self.page.get_by_role("radio", name=name).check()
        self.wait_for("ready")

    def add(self, *files: Path) -> None:
        """Choose files and wait for all answers."""
        done = self.page.locator("#cards > li:not([aria-busy])")
        before = self.page.locator("#cards > li").count()
        self.page.set_input_files("#files", list(files))
        self.expect(done).to_have_count(before + len(files), timeout=60_000)

    def card(self, name: str) -> str:
        return self.page.get_by_role("article", name=name, exact=True).inner_text()

    def probabilities(self, name: str) -> list[float]:
        values = self.page.get_by_role("article", name=name, exact=True).locator("data")
        return [float(each.get_attribute("value") or "nan") for each in values.all()]

    def works_offline(self) -> None:
        """Wait until the service worker has kept the page."""
        self.page.evaluate("async () => { await navigator.serviceWorker.ready; }")


@dataclass
class Stage:
    """What one test needs: browsers, servers, models; closed by ``stack``."""

    chromium: Browser
    web: Path
    stack: ExitStack

    def browser(self, **options: Any) -> BrowserContext:
        """A browser that has never seen the page; ``color_scheme="dark"``, ``viewport=...``."""
        made = self.chromium.new_context(**options)
        made.set_default_timeout(60_000)
        self.stack.callback(made.close)
        return made

    def screen(self, browser: BrowserContext) -> Screen:
        return Screen(browser.new_page())

    def serving(
        self, *bundles: Bundle, port: int = 0, web: Path | None = None, keys: KeyRing | None = None
    ) -> AbstractContextManager[Served]:
        """``with stage.serving(bundle) as served:``; the server is gone after the block."""
        models = {each.model.manifest.name: each.path for each in bundles}
        return serving(models, web or self.web, port, keys)

    def bundle(self, folder: Path, *, heatmap: bool = False, **options: Any) -> Bundle:
        """A bundle of another tiny model, made with ``options``; or one that says where it looked."""
        return write_bundle(folder / "bundle", with_heatmap() if heatmap else tiny_model(**options))
