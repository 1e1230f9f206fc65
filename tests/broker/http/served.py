"""A broker behind uvicorn, with its fast path or without, and requests to it byte by byte."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import uvicorn

from broker import App, Settings, create_app
from broker.http.fast_reads import protocol
from broker.http.request import Receive
from broker.http.response import Send

Answer = tuple[int, dict[str, str], bytes]
CRLF = b"\r\n"
JSON = {"content-type": "application/json"}
IN_MEMORY = Settings(engine="memory")


class Served(NamedTuple):
    """A broker and its port."""

    app: App
    port: int


@asynccontextmanager
async def serving(
    *, fast: bool, whole: bool = True, idle_s: int = 60, settings: Settings = IN_MEMORY
) -> AsyncIterator[Served]:
    """A broker behind uvicorn, with the fast path or without; `whole`: as bodies come, else in two parts."""
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app if whole else in_parts(app),
        http=protocol(app.fast_appends, app.fast_reads) if fast else "httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=idle_s,
        limit_concurrency=settings.connections_max,
    )
    server = uvicorn.Server(config)
    async with app.running():
        task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001 -- `serve` takes over the signals
        while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.005)
        try:
            yield Served(app, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task


def in_parts(app: App) -> Any:
    """An application that tells of each request first that its body has begun: no append is plain there."""

    async def parted(scope: Any, receive: Receive, send: Send) -> None:
        begun = iter([{"type": "http.request", "body": b"", "more_body": True}])

        async def receive_in_parts() -> Any:
            return next(begun, None) or await receive()

        await app(scope, receive_in_parts, send)

    return parted


def request(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: broker", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + CRLF + CRLF + body


async def exchange(port: int, raw: bytes, answers: int = 1, piece_bytes: int = 1_000_000) -> list[Answer]:
    """So many answers to these bytes, sent in pieces on a connection of their own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with asyncio.timeout(10):
            for start in range(0, len(raw), piece_bytes):
                writer.write(raw[start : start + piece_bytes])
                await writer.drain()
                await asyncio.sleep(0)  # let the other side take it by itself
            return [await read_answer(reader) for _ in range(answers)]
    finally:
        writer.close()
        await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer, without what differs between any two: dates, ids, and incarnations."""
    head = (await reader.readuntil(CRLF + CRLF)).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    for name in ("date", "x-request-id", "content-length", "etag"):
        headers.pop(name, None)
    headers = {name: re.sub(r"_[0-9a-f]{16}", "_life", value) for name, value in headers.items()}
    body = re.sub(rb'"requestId":"[^"]*"', b'"requestId":""', re.sub(rb"_[0-9a-f]{16}", b"_life", body))
    body = re.sub(rb'"createdAt":"[^"]*"', b'"createdAt":""', body)
    return int(status_line.split()[1]), headers, body
