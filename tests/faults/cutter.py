"""A proxy that knows nothing of HTTP: it passes bytes on, and cuts connections after as many as chance says."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

HOST = "127.0.0.1"
READ_BYTES = 4096


class Cutter:
    """Between clients and one broker. Each connection may carry `bytes_min` to `bytes_max` bytes, both ways together.

    While `is_open` is false it is a network that is away: connections are cut as they are made.
    """

    def __init__(self, broker_port: int, chance: random.Random, bytes_min: int, bytes_max: int) -> None:
        self.is_open = True
        self.cuts = 0
        self.connections = 0
        self.bytes_range = (bytes_min, bytes_max)
        self.port = 0
        self._broker_port = broker_port
        self._chance = chance
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None, None]:
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self.cut_all()
            while self._writers:  # noqa: ASYNC110  each of their tasks is on its way out
                await asyncio.sleep(0.001)

    def cut_all(self) -> None:
        """Cut what is connected."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self.is_open:
            writer.transport.abort()
            return
        upstream_reader, upstream = await asyncio.open_connection(HOST, self._broker_port)
        self._writers |= {writer, upstream}
        left = [self._chance.randint(*self.bytes_range)]
        try:
            await asyncio.gather(self._pass_on(reader, upstream, left), self._pass_on(upstream_reader, writer, left))
        except (OSError, EOFError):
            self.cuts += left[0] < 0
        finally:
            for end in (writer, upstream):
                end.transport.abort()
            self._writers -= {writer, upstream}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        while data := await reader.read(READ_BYTES):
            left[0] -= len(data)
            if left[0] < 0:
                writer.write(data[: left[0]])  # what was allowed, if that is any of it
                raise EOFError
            writer.write(data)
            await writer.drain()
        raise EOFError
