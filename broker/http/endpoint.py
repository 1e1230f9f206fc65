"""The raw ASGI callable in front of an API: a request as a value in, a response as a value out.

No framework on this way: an append should cost little more than its bytes. What is decided is decided behind it; here
is what every request has in common, and what is said when one fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from broker.errors import BrokerError, EngineStopped
from broker.http.compression import Compression
from broker.http.problems import BadRequest, Form, answer_bad_request, answer_broker_error, answer_bug, answer_with
from broker.http.request import (
    ClientLeft,
    Headers,
    Receive,
    Request,
    Scope,
    decode_path,
    headers_of,
    raw_path_of,
    request_id_of,
)
from broker.http.response import (
    PREFLIGHT,
    CutOff,
    LiveResponse,
    Response,
    Send,
    is_for_page,
    send_live,
    send_response,
)
from broker.http.traffic import Traffic

T = TypeVar("T")
Respond = Callable[[Request, Receive], Awaitable[Response | LiveResponse]]
"""What an API does with a request. Raises BadRequest, BrokerError and ClientLeft; anything else is a bug."""

log = logging.getLogger("streamfold.http")


class Endpoint:
    """One API, behind one prefix."""

    def __init__(
        self,
        prefix: bytes,
        respond: Respond,
        traffic: Traffic,
        *,
        live_s_max: float = 0.0,
        form: Form = answer_with,
        compression: Compression | None = None,
    ) -> None:
        self.prefix = prefix
        self._respond = respond
        self._traffic = traffic
        self._live_s_max = live_s_max
        self._form = form
        self._compression = compression

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, whose raw path behind `root_path` begins with `prefix`."""
        headers = headers_of(scope["headers"])
        id_bytes = request_id_of(headers)
        request_id = id_bytes.decode()
        try:
            if scope["method"] == "OPTIONS":
                response: Response | LiveResponse = Response(204, list(PREFLIGHT))
            else:
                response = await self._respond(request_of(scope, headers, request_id, self.prefix), receive)
        except ClientLeft:
            return
        except Exception as error:  # noqa: BLE001 -- `answer_error` tells them apart
            response = answer_error(error, request_id, self._traffic, self._form)
        if isinstance(response, LiveResponse):
            self._traffic.count(200)
            await self._send_live(response, id_bytes, receive, send)
        else:
            self._traffic.count(response.status)
            if self._compression is not None:
                response = await self._compression.apply(response, scope, headers)
            await send_response(send, response, id_bytes, for_page=is_for_page(scope["method"], headers))

    async def _send_live(self, response: LiveResponse, request_id: bytes, receive: Receive, send: Send) -> None:
        try:
            # A reader that takes nothing holds `send` up for ever: it is given up.
            async with asyncio.timeout(self._live_s_max), aclosing(response.chunks):
                await unless_client_leaves(send_live(send, response, request_id), receive)
        except (ClientLeft, CutOff, TimeoutError, EngineStopped):
            return
        except Exception:  # a bug of ours. The status has left: only an end without an end has the reader come back
            self._traffic.bugs += 1
            log.exception("request %s failed while it was streamed", request_id.decode())


def request_of(scope: Scope, headers: Headers, request_id: str, prefix: bytes) -> Request:
    """The request of an HTTP or WebSocket connection whose raw path behind `root_path` begins with `prefix`.

    Raises BadRequest (INVALID_PATH).
    """
    target = raw_path_of(scope)
    path = decode_path(target[len(scope.get("root_path", "")) + len(prefix) :])
    method = scope.get("method", "GET")
    return Request(method, path, headers, scope["query_string"], target, request_id, scope.get("scheme", "http"))


def answer_error(error: Exception, request_id: str, traffic: Traffic, form: Form = answer_with) -> Response:
    """What a request gets that could not become an outcome. What is no error of ours is a bug, and is logged."""
    if isinstance(error, BadRequest):
        return answer_bad_request(error, request_id, form)
    if isinstance(error, BrokerError):
        return answer_broker_error(error, request_id, form)
    traffic.bugs += 1
    log.error("request %s failed", request_id, exc_info=error)
    return answer_bug(request_id, form)


async def unless_client_leaves(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns or raises. Raises ClientLeft, and stops it, when the client closes the connection first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_leaves(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
