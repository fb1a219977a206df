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
    from starlette.types import Receive, Scope, Send


class Shortcut:
    """ASGI app that calls the functions of some routes itself, without FastAPI's layers.

    The routes' functions take the request and ``?model=``, and read the rest themselves. FastAPI's middleware,
    matching, exit stacks and argument solving cost such a request a twentieth of its time (benchmarks/server.py); the
    routes stay with FastAPI all the same, for the OpenAPI document and for every other method.

    Args:
        routes: with fixed paths.
    """

    def __init__(self, routes: Sequence[APIRoute]) -> None:
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    def leads_to(self, scope: Scope) -> bool:
        """Whether a connection is a request for one of the routes."""
        return scope["type"] == "http" and (scope["method"], scope["path"]) in self._routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request that `leads_to` is true of."""
        route = scope["route"] = self._routes[scope["method"], scope["path"]]
        request = Request(scope, receive, send)
        model = request.query_params.get("model") if scope["query_string"] else None
        try:
            response: Response = await route.endpoint(request, model)
        except Problem as problem:
            response = await answer_problem(request, problem)
        await response(scope, receive, send)
