"""Everything that is not a stream runs under Starlette; here is what makes its answers ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response as StarletteResponse
from starlette.routing import BaseRoute

from broker.errors import BrokerError
from broker.http.problems import BadRequest, answer_bad_request, answer_broker_error, answer_bug, answer_with, problem
from broker.http.request import Receive, Scope, headers_of, request_id_of
from broker.http.response import COMMON, PREFLIGHT, Response, Send, send_response
from broker.http.traffic import Traffic
from consumer.wire import Code

log = logging.getLogger("streamfold.http")


class Framework:
    """A Starlette application with the common headers, request ids and problems.

    An endpoint finds the request's id in `request.state.request_id` and may raise BadRequest and BrokerError.
    """

    def __init__(self, routes: Sequence[BaseRoute], traffic: Traffic, lifespan: Callable[[Any], Any]) -> None:
        self._traffic = traffic
        self._starlette = Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={
                BadRequest: _on_bad_request,
                BrokerError: _on_broker_error,
                HTTPException: _on_http_exception,
                Exception: _on_bug,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any ASGI connection."""
        if scope["type"] != "http":
            await self._starlette(scope, receive, send)
            return
        request_id = request_id_of(headers_of(scope["headers"]))
        if scope["method"] == "OPTIONS":
            await send_response(send, Response(204, list(PREFLIGHT)), request_id)
            return
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        started = False

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._traffic.count(message["status"])
                message["headers"] = [*COMMON, (b"x-request-id", request_id), *message.get("headers", ())]
            await send(message)

        try:
            await self._starlette(scope, receive, send_with_headers)
        except Exception:  # a bug of ours: Starlette has answered with `_on_bug`, and raises on
            self._traffic.bugs += 1
            log.exception("request %s failed", request_id.decode())  # once, and not by the server again
            if not started:
                raise


def framed(response: Response) -> StarletteResponse:
    """One of our responses as one of Starlette's."""
    made = StarletteResponse(response.body, response.status)
    made.raw_headers = list(response.headers)
    return made


def _id(request: StarletteRequest) -> str:
    return str(request.state.request_id)


def _on_bad_request(request: StarletteRequest, error: Exception) -> StarletteResponse:
    assert isinstance(error, BadRequest)
    return framed(answer_bad_request(error, _id(request)))


def _on_broker_error(request: StarletteRequest, error: Exception) -> StarletteResponse:
    assert isinstance(error, BrokerError)
    return framed(answer_broker_error(error, _id(request)))


def _on_http_exception(request: StarletteRequest, error: Exception) -> StarletteResponse:
    assert isinstance(error, HTTPException)
    code = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}.get(error.status_code, Code.INVALID_BODY)
    headers = tuple((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items())
    return framed(answer_with(problem(code, request_id=_id(request)), headers))


def _on_bug(request: StarletteRequest, _error: Exception) -> StarletteResponse:
    return framed(answer_bug(_id(request)))
