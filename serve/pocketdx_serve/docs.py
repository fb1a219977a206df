"""The documentation page: plain HTML made from the OpenAPI document, no scripts, nothing from elsewhere.

FastAPI's own pages load Swagger UI or ReDoc from a content delivery network. A clinic has no internet, and a
page on the origin that receives patients' images should not run other people's code.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Any

from pocketdx_serve.problems import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "pre{overflow-x:auto;padding:.75rem;border:1px solid #8888;border-radius:.25rem}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .75rem .2rem 0}h2{margin-top:2.5rem}"
)
CSP = (
    "default-src 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)
_CURL = {
    "/v1/diagnose": "curl -F image=@chest.jpg {base}/v1/diagnose\n"
    "curl -F image=@a.jpg -F image=@b.png {base}/v1/diagnose\n"
    "curl -H 'Content-Type: image/jpeg' --data-binary @chest.jpg {base}/v1/diagnose",
    "/v1/embed": "curl -F image=@chest.jpg {base}/v1/embed",
    "/v1/models": "curl {base}/v1/models",
    "/v1/model": "curl {base}/v1/model",
    "/v1/model/file": "curl -o model.onnx {base}/v1/model/file",
    "/v1/model/golden": "curl -o golden.npz {base}/v1/model/golden",
    "/livez": "curl {base}/livez",
    "/readyz": "curl {base}/readyz",
}


def render(openapi: Mapping[str, Any], base: str = "http://127.0.0.1:8000") -> str:
    """The page for an OpenAPI document.

    Args:
        openapi: what ``FastAPI.openapi()`` gives.
        base: address used in the examples.
    """
    info = openapi["info"]
    operations = [
        _operation(method, path, operation, base)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
        if method != "head"
    ]
    kinds = "".join(
        f"<tr><td>{kind.status}</td><td><code>{escape(kind.reason)}</code></td><td>{escape(kind.title)}</td></tr>"
        for kind in sorted(KINDS.values(), key=lambda kind: (kind.status, kind.reason))
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>'
        f"{''.join(operations)}"
        "<h2>Refusals</h2><p>Every refusal is <code>application/problem+json</code> (RFC 9457) with a stable "
        f"<code>reason</code>.</p><table><tr><th>Status</th><th>reason</th><th>Meaning</th></tr>{kinds}</table>"
        "</body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], base: str) -> str:
    body = operation.get("requestBody")
    takes = ""
    if body:
        types = ", ".join(f"<code>{escape(media_type)}</code>" for media_type in body["content"])
        takes = f"<p>{escape(body.get('description', ''))}</p><p>Takes {types}.</p>"
    rows = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
    )
    curl = _CURL.get(path)
    example = f"<pre>{escape(curl.format(base=base))}</pre>" if curl else ""
    return (
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
        f"<p><strong>{escape(operation.get('summary', ''))}</strong></p>"
        f"<p>{escape(operation.get('description', ''))}</p>{takes}{example}<table>{rows}</table>"
    )
