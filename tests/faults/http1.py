"""HTTP/1.1 as plain as it comes: one request on one connection, its bytes out, its bytes in.

The storm spends what time the broker is given between two kills; a client of many layers would spend most of it.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

LINE_BYTES_MAX = 1 << 20


class Broken(Exception):
    """The connection could not be made, or ended before the whole answer was there."""


class NotConnected(Broken):
    """Nobody listens: nothing of the request was sent."""


class Head(NamedTuple):
    """Status and headers of an answer, names in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(eq=False)
class Exchange:
    """An answer that is being read. `is_whole` once all of its body was."""

    head: Head
    _reader: asyncio.StreamReader
    is_whole: bool = False

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises Broken when it ends too early."""
        async with _named_errors():
            if self.head.headers.get("transfer-encoding") == "chunked":
                while piece := await self._chunk():
                    yield piece
            elif length := int(self.head.headers.get("content-length", "0")):
                yield await self._reader.readexactly(length)
        self.is_whole = True

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]


@asynccontextmanager
async def _named_errors() -> AsyncGenerator[None, None]:
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        raise Broken(repr(error)) from error


class Connections:
    """Connections to one server, or to any of several, kept for the next request after a whole answer."""

    def __init__(self, host: str, *ports: int) -> None:
        self._host = host
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {port: [] for port in ports}

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, headers: Mapping[str, str], content: bytes
    ) -> AsyncGenerator[Exchange, None]:
        """Send a request; its answer when the head is there. Raises NotConnected, Broken."""
        port = random.choice(list(self._idle))
        reader, writer = await self._connection(port)
        exchange: Exchange | None = None
        try:
            async with _named_errors():
                writer.write(request_bytes(method, target, {"host": self._host, **headers}, content))
                exchange = Exchange(await head_of(reader), reader)
                if method == "HEAD" or exchange.head.status in (204, 304):
                    exchange.is_whole = True
            yield exchange
        finally:
            if exchange is not None and exchange.is_whole and exchange.head.headers.get("connection") != "close":
                self._idle[port].append((reader, writer))
            else:
                writer.transport.abort()

    async def _connection(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle[port]:
            reader, writer = self._idle[port].pop()
            if not reader.at_eof() and reader.exception() is None and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        try:
            return await asyncio.open_connection(self._host, port, limit=LINE_BYTES_MAX)
        except OSError as error:
            raise NotConnected(repr(error)) from error

    def close(self) -> None:
        for idle in self._idle.values():
            for _, writer in idle:
                writer.transport.abort()
            idle.clear()


def request_bytes(method: str, target: str, headers: Mapping[str, str], content: bytes) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if content or method in ("POST", "PUT"):
        lines.append(f"content-length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


async def head_of(reader: asyncio.StreamReader) -> Head:
    """Raises EOFError or ValueError when it is not there, or is none."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return Head(int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in fields})
