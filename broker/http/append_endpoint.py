"""Plain appends that come through ASGI: one coroutine each, and what they have in common done for all at once.

An append that is taken for one by `fast_path` is in hand here as it is there. What came in one turn of the event loop
becomes entries in one go, and what a commit did becomes answers in one go: each request's task has only to receive and
to send. By turns with the server's code and somebody's middleware, each would have the other's leave the caches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from broker.http.fast_path import Append, Cycle, FastAppends
from broker.http.request import Headers, Receive, Scope, headers_of, raw_path_of
from broker.http.response import Response, Send, send_response

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Told = asyncio.Future[tuple[Cycle, str, Response] | None]
"""The answer to a request, and its id; None for one that has to go the usual way."""
Arrived = tuple[Told, type[Append], bytes, Headers, bytes]
"""A request that is here as a whole: who is told, what it is, target, headers and body."""


class AppendEndpoint:
    """Every POST comes here first; `usual` has the application for what is no plain append."""

    def __init__(self, appends: FastAppends, usual: Callable[[Scope], Application]) -> None:
        self._appends = appends
        self._usual = usual
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: list[Arrived] = []  # in this turn of the event loop

    def open(self) -> None:
        """The broker is about to run in this event loop."""
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        headers = headers_of(scope["headers"])
        target = raw_path_of(scope)[len(scope.get("root_path", "")) :]
        kind = self._appends.kind_of(b"POST", target, headers)
        if kind is None or self._loop is None or scope["query_string"]:
            await self._usual(scope)(scope, receive, send)
            return
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body: bytes = message.get("body", b"")
        answer = None
        if not message.get("more_body", False) and len(body) <= self._appends.body_bytes_max:
            answer = await self._begun_soon(self._loop, kind, target, headers, body)
        if answer is None:
            await self._usual(scope)(scope, _again(message, receive), send)
            return
        append, request_id, response = answer
        await send_response(send, response, request_id.encode(), for_page=append.for_page)

    def _begun_soon(
        self, loop: asyncio.AbstractEventLoop, kind: type[Append], target: bytes, headers: Headers, body: bytes
    ) -> Told:
        told: Told = loop.create_future()
        self._arrived.append((told, kind, target, headers, body))
        if len(self._arrived) == 1:
            loop.call_soon(self._begin)
        return told

    def _begin(self) -> None:
        arrived, self._arrived = self._arrived, []
        for told, kind, target, headers, body in arrived:
            append = kind(self._appends, headers, partial(_tell, told), keep_alive=True)
            if not told.done() and not append.begin(target, body):
                told.set_result(None)


def _tell(told: Told, append: Cycle, request_id: str, response: Response) -> None:
    if not told.done():  # nobody waits for it any more when the request's task was cancelled
        told.set_result((append, request_id, response))


def _again(message: MutableMapping[str, Any], receive: Receive) -> Receive:
    """`receive`, with a message that it has given already."""
    received = [message]

    async def receive_again() -> MutableMapping[str, Any]:
        return received.pop() if received else await receive()

    return receive_again
