"""The web page, where its built files are in the package (``pocketdx_serve/web``); they are read once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.routing import Route

from pocketdx_serve.downloads import Download, etag_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import Request, Response

WEB: Final = Path(__file__).with_name("web")
INDEX: Final = "index.html"
CSP: Final = "; ".join(
    (
        "default-src 'none'",
        # 'wasm-unsafe-eval' lets WebAssembly compile; it does not let JavaScript evaluate strings.
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self' blob:",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": CSP,
    # Both together give the page SharedArrayBuffer, and so WebAssembly its threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
ENCODINGS: Final = {".br": "br", ".gz": "gzip"}
"""Files with these endings are not served themselves: they are the compressed form of the one without."""
FOREVER: Final = "public, max-age=31536000, immutable"
ASK_FIRST: Final = "no-cache"


@dataclass
class PageFile:
    """One file of the built page.

    Attributes:
        path: where it is.
        address: at which it is served, without the first slash.
        forms: the file itself ("") and its compressed forms, by Content-Encoding.
    """

    path: Path
    address: str
    forms: Mapping[str, Path]

    @cached_property
    def contents(self) -> dict[str, tuple[bytes, str]]:
        """Bytes and ETag by Content-Encoding."""
        read = {coding: path.read_bytes() for coding, path in self.forms.items()}
        return {coding: (data, etag_of(hashlib.sha256(data).hexdigest())) for coding, data in read.items()}

    @property
    def cache_control(self) -> str:
        """Vite puts a hash of the content into the names of what lies in ``assets``; those never change."""
        return FOREVER if self.address.startswith("assets/") else ASK_FIRST

    async def answer(self, request: Request) -> Response:
        """The file, in the best form that the client takes."""
        accepted = {each.partition(";")[0].strip() for each in request.headers.get("accept-encoding", "").split(",")}
        coding = next((each for each in ENCODINGS.values() if each in accepted and each in self.contents), "")
        data, etag = self.contents[coding]
        headers = {**HEADERS, "Cache-Control": self.cache_control}
        if coding:
            headers["Content-Encoding"] = coding
        if len(self.contents) > 1:
            headers["Vary"] = "Accept-Encoding"
        media_type = MEDIA_TYPES.get(self.path.suffix, "application/octet-stream")
        return Download(data, etag, media_type, request.headers, headers)


def page_files(folder: Path = WEB) -> list[PageFile]:
    """What is to be served; empty where the page was not built. Links and hidden files are left out."""
    if not (folder / INDEX).is_file():
        return []
    files = []
    for path in sorted(folder.rglob("*")):
        address = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.is_symlink() or not path.is_file() or path.suffix in ENCODINGS:
            continue
        packed = {coding: path.with_name(path.name + ending) for ending, coding in ENCODINGS.items()}
        forms = {"": path, **{coding: each for coding, each in packed.items() if each.is_file()}}
        files.append(PageFile(path, address, forms))
    return files


def page_routes(files: list[PageFile]) -> list[Route]:
    """A route for each file, and ``/`` for the index. Nothing else of the folder can be reached."""
    routes = [Route(f"/{each.address}", each.answer, methods=["GET"]) for each in files]
    routes += [Route("/", each.answer, methods=["GET"]) for each in files if each.address == INDEX]
    return routes
