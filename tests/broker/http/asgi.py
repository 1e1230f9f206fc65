"""A client that calls an ASGI application directly: every byte and every event of a request is the test's own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from broker import App, Settings, create_app
from broker.http.request import Receive
from broker.http.response import Send

EVENT_WAIT_S_MAX = 10.0


class Answer(NamedTuple):
    """A whole response; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])

    @property
    def offset(self) -> str:
        return self.headers["stream-next-offset"]


class Exchange:
    """One request under way: `parts` of the body go in, what the application sends comes out."""

    def __init__(self, app: App, scope: dict[str, Any], parts: list[bytes]) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._parts = parts
        self._left = asyncio.Event()
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: App, scope: dict[str, Any]) -> None:
        receive: Receive = self._receive
        send: Send = self._send
        await app(scope, receive, send)

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.put_nowait(message)

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def next(self) -> dict[str, Any]:
        """The next message that the application sends."""
        async with asyncio.timeout(EVENT_WAIT_S_MAX):
            return await self.sent.get()

    async def chunk(self) -> str:
        """The next piece of a live response; "" at its end."""
        message = await self.next()
        assert message["type"] == "http.response.body"
        return bytes(message.get("body", b"")).decode()

    async def answer(self) -> Answer:
        """The whole response."""
        start = await self.next()
        body, more = b"", True
        while more:
            message = await self.next()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await self.task
        headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], headers, body)


class Client:
    """Speaks to one application."""

    def __init__(self, app: App) -> None:
        self.app = app

    def begin(
        self, method: str, target: str, body: bytes | list[bytes] = b"", headers: Mapping[str, str] | None = None
    ) -> Exchange:
        """Send a request; a body given as a list arrives in as many parts."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode("latin-1"))
                for name, value in {"host": "example.test", **(headers or {})}.items()
            ],
        }
        return Exchange(self.app, scope, [body] if isinstance(body, bytes) else list(body))

    async def send(
        self, method: str, target: str, body: bytes | list[bytes] = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and wait for its whole answer."""
        return await self.begin(method, target, body, headers).answer()

    async def put(self, path: str, content_type: str = "application/json", body: bytes = b"", **more: str) -> Answer:
        """Create a stream; `more` are headers with underscores for dashes."""
        return await self.send("PUT", path, body, {"content-type": content_type, **_named(more)})

    async def post(self, path: str, body: bytes, content_type: str = "application/json", **more: str) -> Answer:
        """Append to a stream."""
        return await self.send("POST", path, body, {"content-type": content_type, **_named(more)})

    async def get(self, target: str, **headers: str) -> Answer:
        """Read a stream."""
        return await self.send("GET", target, headers=_named(headers))


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def broker(**settings: Any) -> AsyncIterator[Client]:
    """A client of a running broker, on the memory engine if nothing else is said."""
    app = create_app(Settings(**{"engine": "memory", **settings}))
    async with app.running():
        yield Client(app)
