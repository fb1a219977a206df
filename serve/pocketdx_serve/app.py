"""The app factory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from pocketdx_serve import routes, routes_v2
from pocketdx_serve.breaks import Breaks
from pocketdx_serve.envelope import Envelope
from pocketdx_serve.models import Models, name_of
from pocketdx_serve.pages import WEB, page_files, page_routes
from pocketdx_serve.problems import Problem
from pocketdx_serve.replies import answer_http_exception, answer_invalid, answer_problem
from pocketdx_serve.schemas import ProblemDetails
from pocketdx_serve.service import Service
from pocketdx_serve.settings import Settings
from pocketdx_serve.shedding import Shedding
from pocketdx_serve.shortcut import Shortcut
from pocketdx_serve.tensors import HEADER_LENGTH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from pocketdx_runtime.model import Model
    from pocketdx_serve.audit import AuditLog
    from pocketdx_serve.keys import KeyRing

DESCRIPTION = (
    "Diagnoses medical images with a PocketDx model file. Images stay in memory while they are worked on; "
    "none is written to a disk or a log, and nothing is fetched by URL. Research use only, unless the "
    "model's manifest says otherwise."
)


def create_app(
    models: Model | Mapping[str, Model],
    settings: Settings | None = None,
    *,
    keys: KeyRing | None = None,
    audit: AuditLog | None = None,
    cors: Sequence[str] = (),
    metrics: bool = True,
    web: Path = WEB,
) -> FastAPI:
    """A FastAPI app that serves one model or several.

    Each model is loaded and tested beside the running server once the app starts; until then `/readyz` and the
    image endpoints answer 503. Give models ``threads=1``: the pool runs images side by side, which is faster
    than several threads within one image.

    Args:
        models: the model, or several by name, the default first; they need not be loaded yet. A single one is
            named after its file.
        settings: limits and sizes; None takes the defaults.
        keys: who may ask; None lets everybody in.
        audit: where to record what was asked; it is closed when the app ends.
        cors: origins whose pages may ask from a browser; none by default.
        metrics: whether `/metrics` is one of its addresses.
        web: folder of the built web page; without its index.html, ``/`` leads to the documentation.
    """
    if not isinstance(models, Mapping):
        models = {name_of(models.name): models}
    service = Service(Models(models), settings or Settings(), keys, audit)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = _App(
        title="PocketDx",
        version=version("pocketdx"),
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_exception,
            RequestValidationError: answer_invalid,
        },
    )
    app.state.service = service
    for_images = [each for each in routes.images.routes if isinstance(each, APIRoute)]
    app.take_shortcut(Shortcut(for_images))
    if cors:
        app.surround(
            CORSMiddleware,
            allow_origins=list(cors),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", HEADER_LENGTH],
            expose_headers=["ETag", "Retry-After", "Server-Timing", "X-Request-ID", HEADER_LENGTH],
        )
    app.surround(Envelope, metrics=service.metrics)
    # Not with CORS: a page could not read a refusal without its headers.
    app.state.shedding = Shedding(service.metrics, service.room, () if cors else [each.path for each in for_images])
    app.state.breaks = Breaks(service.workers.supplied)
    app.include_router(routes.images)
    app.include_router(routes.api)
    app.include_router(routes_v2.v2)
    app.include_router(routes.health)
    if metrics:
        app.include_router(routes.monitoring)
    app.router.routes.extend(page_routes(page_files(web)) or [Route("/", routes.root, methods=["GET"])])
    app.openapi = cache(lambda: _openapi(app))  # type: ignore[method-assign]  # FastAPI's documented way
    return app


class _App(FastAPI):
    """FastAPI with a short way past it, around which some middleware is the same."""

    def take_shortcut(self, shortcut: Shortcut) -> None:
        """Let ``shortcut`` answer the requests that it leads to."""
        self._leads_to = shortcut.leads_to
        self._short: ASGIApp = shortcut

    def surround(self, middleware: Callable[..., ASGIApp], **options: Any) -> None:
        """Put ``middleware`` around all that has been added until now, on both ways."""
        self.add_middleware(middleware, **options)
        self._short = middleware(self._short, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if self._leads_to(scope):
            scope["app"] = self
            await self._short(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the schema of problems, which no route returns as its regular answer."""
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        license_info=app.license_info,
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    problem = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["ProblemDetails"] = problem
    if app.state.service.keys is not None:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for operations in document["paths"].values():
            for operation in operations.values():
                if "401" in operation["responses"]:
                    operation["security"] = [{"bearer": []}, {"header": []}]
    return document
