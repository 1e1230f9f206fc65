"""HTTP as the judge speaks it: requests that may die with the broker, pages and events as they come over the wire.

On purpose none of the client libraries of this project: a fault in them must not hide one in the broker.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

import anyio

from tests.faults.history import History
from tests.faults.http1 import Broken, Connections, Exchange, NotConnected
from tests.faults.session_checker import canonical

REQUEST_S_MAX = 25.0
"""A killed broker's connections break at once. A living one that does not answer for so long is a fault by itself."""
LIVE_S_MAX = 45.0
"""Longer than a long-poll waits."""
KNOCK_S = 0.2
RETRYABLE = frozenset({408, 429, 503})
STREAMS = "/v1/stream"
SESSIONS = "/v1/sessions"


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """What problem+json says; empty for any other body."""
        try:
            told = json.loads(self.body)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    @property
    def code(self) -> str:
        return str(self.problem.get("code", ""))

    @property
    def next_offset(self) -> str | None:
        return self.headers.get("stream-next-offset")

    def __str__(self) -> str:
        return f"{self.status} {self.body[:200]!r}"


class Page(NamedTuple):
    """Consecutive content of a stream: a text for each position. `status` is that of its answer."""

    status: int
    content: list[str]
    next_offset: str
    closed: bool = False
    up_to_date: bool = False


class EngineHasStoppedError(Exception):
    """The broker acknowledges nothing any more, and nothing here gave it a reason to."""


class Client:
    """Requests to one broker, or each to any of several, over several connections."""

    def __init__(self, port: int, history: History, *other_ports: int) -> None:
        self.history = history
        self.is_patient = True
        """Whether it is a fault to be left without an answer; else the request is let go, its fate unknown."""
        self.request_s_max = REQUEST_S_MAX
        self.up = asyncio.Event()
        """Set while the broker is known to serve: who waits for it leaves it the processor to start on."""
        self._connections = Connections("127.0.0.1", port, *other_ports)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connections.close()

    async def ask(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: bytes = b"",
        wait_s_max: float | None = None,
    ) -> Answer | None:
        """The answer; None when it cannot be told what became of the request. Waits for a broker that is down.

        Raises EngineHasStoppedError: to try again would be in vain.
        """
        if params:
            target = f"{target}?{urlencode(params)}"
        try:
            async with asyncio.timeout(wait_s_max or self.request_s_max):
                answer = await self._answer(method, target, headers or {}, content)
        except Broken:
            return None
        except TimeoutError:
            if self.is_patient:
                self.history.complain(f"{method} {target} was not answered in time")
            return None
        if answer.code == "ENGINE_STOPPED":
            raise EngineHasStoppedError(f"{method} {target} was answered {answer}")
        if answer.status in RETRYABLE:
            return None
        if answer.status >= 500:
            self.history.complain(f"{method} {target} was answered {answer}")
            return None
        return answer

    async def _answer(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> Answer:
        while True:
            try:
                return await self._exchange(method, target, headers, content)
            except NotConnected:
                await self._wait_until_up()

    async def _wait_until_up(self) -> None:
        """Or not quite so long: somebody must knock while it starts."""
        with anyio.move_on_after(KNOCK_S):
            await self.up.wait()
        await asyncio.sleep(KNOCK_S / 10)

    async def _exchange(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> Answer:
        async with self._connections.exchange(method, target, headers, content) as exchange:
            return Answer(exchange.head.status, exchange.head.headers, await exchange.body())

    async def page(self, path: str, offset: str, *, live: str | None = None) -> Page | None:
        """What a GET at `offset` shows; None when the broker did not answer."""
        params = {"offset": offset} if live is None else {"offset": offset, "live": live}
        answer = await self.ask("GET", f"{STREAMS}/{path}", params=params, wait_s_max=LIVE_S_MAX)
        if answer is None:
            return None
        if answer.status not in (200, 204):
            return Page(answer.status, [], offset)
        return Page(
            answer.status,
            content_of(answer.headers.get("content-type", ""), answer.body),
            answer.headers["stream-next-offset"],
            closed=answer.headers.get("stream-closed") == "true",
            up_to_date=answer.headers.get("stream-up-to-date") == "true",
        )

    async def events(
        self, path: str, offset: str, *, is_json: bool, last_event_id: str | None = None
    ) -> AsyncGenerator[Page, None]:
        """The pages of one SSE connection, each when its control event has come; ends when the connection does."""
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        target = f"{STREAMS}/{path}?{urlencode({'offset': offset, 'live': 'sse'})}"
        try:
            async with self._connections.exchange("GET", target, headers, b"") as exchange:
                if exchange.head.status in RETRYABLE:
                    return
                if exchange.head.status != 200:
                    yield Page(exchange.head.status, [], offset)
                    return
                async for page in self._pages(exchange, path, is_json=is_json):
                    yield page
        except NotConnected:
            await self._wait_until_up()
        except Broken:
            return

    async def _pages(self, exchange: Exchange, path: str, *, is_json: bool) -> AsyncGenerator[Page, None]:
        is_base64 = exchange.head.headers.get("stream-sse-data-encoding") == "base64"
        content: list[str] = []
        data_id = ""
        async for event in parsed(exchange.pieces()):
            if event.name == "data":
                content += content_of_event(event.data, is_json=is_json, is_base64=is_base64)
                data_id = event.id
            elif event.name == "control":
                told = json.loads(event.data)
                if content and data_id != told["streamNextOffset"]:
                    self.history.complain(f"data event {data_id} before control event {told} of {path}")
                closed = told.get("streamClosed") is True
                yield Page(200, content, told["streamNextOffset"], closed, closed or told.get("upToDate") is True)
                content = []


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    data: str
    id: str


async def parsed(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Event, None]:
    """Server-sent events (the HTML standard, section 9.2.6), comments and `retry` left out."""
    rest = b""
    last_id = ""
    async for piece in pieces:
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            name, data = "", []
            for line in block.decode().split("\n"):
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match field:
                    case "event":
                        name = value
                    case "data":
                        data.append(value)
                    case "id":
                        last_id = value
            if data:
                yield Event(name, "\n".join(data), last_id)


def content_of(content_type: str, body: bytes) -> list[str]:
    """The content of a page by positions: records in JSON mode, else bytes."""
    if not content_type.startswith("application/json"):
        return list(body.decode("ascii"))
    return [canonical(record) for record in json.loads(body)] if body else []


def content_of_event(data: str, *, is_json: bool, is_base64: bool) -> list[str]:
    """The content of a data event by positions."""
    if is_json:
        return [canonical(record) for record in json.loads(data)]
    return list(base64.b64decode(data.replace("\n", "")).decode("ascii")) if is_base64 else list(data)
