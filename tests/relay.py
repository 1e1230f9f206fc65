"""What lies between a client and a broker, byte by byte: connections that are cut anywhere, or die without a sign."""

import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.abc

from tests.live import HOST

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, for no time


class Relay:
    """Passes bytes on between clients and one broker.

    `cuts` is for the next connections, one each: behind how many bytes of its answers it is reset; None for never.
    """

    def __init__(self, broker_port: int) -> None:
        self.cuts: deque[int | None] = deque()
        self.connections = 0
        """How many were made so far."""
        self._broker_port = broker_port
        self._frozen = anyio.Event()  # set for the connections of its time

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with (
            await anyio.create_tcp_listener(local_host=HOST) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self._serve)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  there is no Django here
            yield f"http://{HOST}:{port}"
            tasks.cancel_scope.cancel()

    def freeze(self) -> None:
        """Let nothing through on the connections that there are, and never end them; new ones are served as before."""
        self._frozen.set()
        self._frozen = anyio.Event()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        bytes_max = self.cuts.popleft() if self.cuts else None
        frozen = self._frozen
        self.connections += 1
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with client, await anyio.connect_tcp(HOST, self._broker_port) as upstream:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_pass_on, client, upstream, frozen, tasks.cancel_scope)
                    await _pass_on(upstream, client, frozen, tasks.cancel_scope, bytes_max)
                raw = client.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  as above
                with suppress(OSError):  # the client was first, and there is nothing left to reset
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


async def _pass_on(
    source: anyio.abc.SocketStream,
    sink: anyio.abc.SocketStream,
    frozen: anyio.Event,
    connection: anyio.CancelScope,
    bytes_max: int | None = None,
) -> None:
    """Until one side is gone, or the bytes are used up; the connection then ends."""
    passed = 0
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while bytes_max is None or passed < bytes_max:
            piece = await source.receive()
            if frozen.is_set():
                await anyio.sleep_forever()
            await sink.send(piece if bytes_max is None else piece[: bytes_max - passed])
            passed += len(piece)
    connection.cancel()
