"""The short way to the addresses that take images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from pocketdx_serve.problems import Problem
from pocketdx_serve.replies import answer_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Response
    from fastapi.routing import APIRoute
    from starlette.types import ASGIApp, Receive, Scope, Send


class Shortcut:
    """ASGI middleware that calls the functions of some routes itself, without the layers in between.

    The routes' functions take the request and ``?model=``, and read the rest themselves. FastAPI's matching,
    exit stacks and argument solving cost such a request a twentieth of its time (benchmarks/server.py); the routes
    stay with FastAPI all the same, for the OpenAPI document and for every other method.

    Args:
        app: for everything else.
        routes: with fixed paths.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[APIRoute]) -> None:
        self.app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response: Response = await route.endpoint(request, request.query_params.get("model"))
        except Problem as problem:
            response = await answer_problem(request, problem)
        await response(scope, receive, send)
