"""Readers of live streams over SSE, as light as they can be: when each event arrives, and no more."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, Self, cast

from benchmarks.workload import NUMBERED, Invalid

CONNECT_S_MAX: Final = 60.0
AT_ONCE: Final = 100
"""Connections that are made at the same time: no server's backlog is what is measured."""

_NUMBER: Final = re.compile((NUMBERED % 0).replace(b"0000000000", rb"(\d{10})"))
_TAIL_BYTES: Final = len(NUMBERED % 0)

Arrived = Callable[[int, float], None]
"""Gets the number of an event, and the time."""


class _Reader(asyncio.Protocol):
    def __init__(self, target: str, arrived: Arrived) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed = ""
        self._target = target
        self._arrived = arrived
        self._transport: asyncio.WriteTransport | None = None
        self._tail = b""
        self._newest = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one without saying so
        request = f"GET {self._target}?offset=now&live=sse HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self._transport.write(request.encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed = f"the server closed a connection: {exc}"
        if not self.ready.done():
            self.ready.set_exception(Invalid(self.failed))

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if not self.ready.done():
            self._begin(data)
        seen = self._tail + data
        for number in map(int, _NUMBER.findall(seen)):
            if number > self._newest:
                self._newest = number
                self._arrived(number, now_s)
        self._tail = seen[-_TAIL_BYTES:]

    def _begin(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200") and not self._tail:
            self.ready.set_exception(Invalid(data[:300].decode(errors="replace")))
        elif b"event: control" in self._tail + data:  # it is told that nothing is missing
            self.ready.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Readers:
    """So many readers of one stream, from its present end on: `async with Readers(…)`. Raises Invalid."""

    def __init__(self, port: int, target: str, count: int, arrived: Arrived) -> None:
        self._port = port
        self._readers = [_Reader(target, arrived) for _ in range(count)]

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(CONNECT_S_MAX):
            for at in range(0, len(self._readers), AT_ONCE):
                await self._connect(self._readers[at : at + AT_ONCE])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for reader in self._readers:
            reader.close()

    async def _connect(self, readers: Sequence[_Reader]) -> None:
        loop = asyncio.get_running_loop()
        for reader in readers:
            await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", self._port)  # type: ignore[misc] # a lambda with a default
        for reader in readers:
            await reader.ready

    def require_whole(self) -> None:
        """Raises Invalid if a connection was lost."""
        for reader in self._readers:
            if reader.failed:
                raise Invalid(reader.failed)
