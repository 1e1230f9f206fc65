"""A real HTTP server that receives webhooks: what it gets is for the test to read, what it says is the test's own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

HOST = "127.0.0.1"
REQUEST_WAIT_S_MAX = 20.0


class Received(NamedTuple):
    """One request; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Receiver:
    """Listens on a free port for as long as its context lasts; answers 200 without a body unless told otherwise."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: asyncio.Queue[Received] = asyncio.Queue()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._answer = b""
        self._hangs = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.answer(200)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/hook"

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Say this from now on."""
        lines = [f"HTTP/1.1 {status} Said", "connection: close"]
        if status != 204:
            lines.append(f"content-length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._answer = "\r\n".join([*lines, "", ""]).encode() + body

    def hang(self) -> None:
        """Take requests, and say nothing."""
        self._hangs = True

    async def next(self) -> Received:
        """The next request."""
        async with asyncio.timeout(REQUEST_WAIT_S_MAX):
            return await self.requests.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.requests.put_nowait(await _request(reader))
            if self._hangs:
                await asyncio.Event().wait()
            writer.write(self._answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # whoever called has left, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)


async def _request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    return Received(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
