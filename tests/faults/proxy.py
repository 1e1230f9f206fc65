"""A proxy that passes every request on and keeps what answers it likes: the acknowledgement that never arrives."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.faults.http1 import Broken, Head, head_of

HOST = "127.0.0.1"


class Withheld(NamedTuple):
    """An answer that the broker gave and the client did not get."""

    request: bytes
    head: Head
    body: bytes


class Proxy:
    """Between clients and one broker. `withholds` judges each request, when its answer is complete.

    An answer that is withheld ends in `withheld`, and the client's connection is cut without a byte of it.
    """

    def __init__(self, port: int, broker_port: int, withholds: Callable[[bytes], bool]) -> None:
        self.port = port
        self.withheld: asyncio.Queue[Withheld] = asyncio.Queue()
        self._broker_port = broker_port
        self._withholds = withholds

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None, None]:
        server = await asyncio.start_server(self._serve, HOST, self.port)
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._pass_on(reader, writer):
                continue
        except (OSError, EOFError, Broken):
            pass  # one of the two is gone; the other is cut off
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when that was withheld."""
        request = await message_of(reader)
        upstream_reader, upstream = await asyncio.open_connection(HOST, self._broker_port)
        try:
            upstream.write(request)
            answer = await message_of(upstream_reader)
        finally:
            upstream.transport.abort()
        if self._withholds(request):
            await self.withheld.put(await withheld(request, answer))
            return False
        writer.write(answer)
        await writer.drain()
        return True


def every_first_time() -> Callable[[bytes], bool]:
    """Withholds the answer to each request when it comes for the first time, and never again."""
    seen: set[bytes] = set()

    def withholds(request: bytes) -> bool:
        if request in seen:
            return False
        seen.add(request)
        return True

    return withholds


async def message_of(reader: asyncio.StreamReader) -> bytes:
    """The bytes of a whole request or answer of known length. Raises EOFError when it is cut short."""
    head = await reader.readuntil(b"\r\n\r\n")
    names = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
    return head + await reader.readexactly(int(names.get(b"content-length", b"0")))


async def withheld(request: bytes, answer: bytes) -> Withheld:
    reader = asyncio.StreamReader()
    reader.feed_data(answer)
    reader.feed_eof()
    return Withheld(request, await head_of(reader), await reader.read())
