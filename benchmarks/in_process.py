"""A broker in this process without sockets: what stands in for them, so that nothing but the broker is measured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from broker import App, Settings, create_app
from broker.http.fast_reads import protocol


class Transport:
    """What is left of a socket: answers are counted."""

    def __init__(self) -> None:
        self.answers = 0
        self.enough = asyncio.Event()
        self.wanted = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Addresses."""
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def write(self, data: bytes) -> None:
        """One answer, or its empty body. Raises RuntimeError for a refusal: then something else is measured."""
        if not data:
            return
        if data[9:10] != b"2":
            raise RuntimeError(data.decode(errors="replace"))
        self.count()

    def want(self, answers: int) -> None:
        """Have `enough` set when so many more have come."""
        self.wanted = self.answers + answers
        self.enough.clear()

    def count(self) -> None:
        """One more."""
        self.answers += 1
        if self.answers == self.wanted:
            self.enough.set()

    def resume_reading(self) -> None:
        """It never stopped."""

    def close(self) -> None:
        """There is nothing to close."""


class EventTransport(Transport):
    """The same for events."""

    def write(self, data: bytes) -> None:
        """The head of a response, or an event."""
        if b"event: control" in data:
            self.count()


class AckTransport(Transport):
    """The same for acks of uploads."""

    def write(self, data: bytes) -> None:
        """The head of a response, or an ack. Raises RuntimeError for a refusal."""
        if b'"error"' in data or data.startswith(b"HTTP/1.1 4"):
            raise RuntimeError(data.decode(errors="replace"))
        if b'"seq"' in data:
            self.count()


class Client:
    """Calls an ASGI application."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def call(self, method: str, path: str, body: bytes = b"", query: bytes = b"", **headers: str) -> bytes:
        """The body of the answer. Raises RuntimeError for one that is no success."""
        status, answer = 0, b""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, answer
            status = message.get("status", status)
            answer += message.get("body", b"")

        await self._app(self.scope(method, path, query, len(body), headers), receive, send)
        if status not in range(200, 300):
            raise RuntimeError(f"{method} {path}: {status} {answer.decode(errors='replace')}")
        return answer

    @staticmethod
    def scope(method: str, path: str, query: bytes, body_bytes: int, headers: dict[str, str]) -> dict[str, Any]:
        """A request as ASGI has it."""
        told = {"host": "localhost", "content-type": "application/json", "content-length": str(body_bytes), **headers}
        return {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "scheme": "http",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in told.items()],
        }


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[App]:
    """A broker on a disk."""
    app = create_app(Settings(data_dir=folder))
    async with app.running():
        yield app


@asynccontextmanager
async def connected(
    folder: Path, transport: Transport, count: int, *, fast: bool = True
) -> AsyncGenerator[tuple[App, list[HttpToolsProtocol]]]:
    """A broker on a disk, and so many connections with one transport; not `fast`: as somebody's uvicorn has them."""
    async with opened(folder) as app:
        connections = _connections(app, transport, count, fast=fast)
        yield app, connections
        for connection in connections:
            connection.connection_lost(None)
        await app.uploads.drain(1)


def _connections(app: App, transport: Transport, count: int, *, fast: bool) -> list[HttpToolsProtocol]:
    config = uvicorn.Config(
        app,
        http=protocol(app.fast_appends, app.fast_reads) if fast else "httptools",
        access_log=False,
        log_config=None,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
    connections: list[HttpToolsProtocol] = []
    for _ in range(count):
        connection = config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]  # typed as asyncio's
        connection.connection_made(transport)  # type: ignore[arg-type]  # all of a transport that is asked for
        connections.append(connection)  # type: ignore[arg-type]  # it is what `protocol` made
    return connections
