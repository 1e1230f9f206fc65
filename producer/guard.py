"""The transport of a Producer, watched: each attempt tells how the broker is, and what the next may do."""

from __future__ import annotations

from collections.abc import Awaitable
from http import HTTPStatus
from typing import Final

import anyio
from yarl import URL

from consumer.errors import AttemptFailed, ClientError, Unhealthy
from consumer.transport import HttpTransport, Request, Response, Transport
from producer.compression import CompressingTransport
from producer.health import Health
from producer.signal import Signal

__all__ = ["GuardedTransport"]

_PROBE: Final = Request("GET", "/health")


class GuardedTransport:
    """A Transport that raises Unhealthy, and sends nothing, while the broker is taken for unhealthy."""

    def __init__(self, transport: Transport, health: Health, *, compress_bytes_min: int | None = None) -> None:
        self.health = health
        self.compressing: Transport = CompressingTransport(self, compress_bytes_min)
        """The same for requests that a broker of ours answers: their bodies may be compressed."""
        self.streams = True
        """Whether connections that last as long as an answer get through; something on the way may hold them back."""
        self._transport = transport
        self._failed = Signal()

    def check(self) -> None:
        """Raise Unhealthy if nothing should be sent now."""
        blocked_s = self.health.blocked_s(anyio.current_time())
        if blocked_s:
            raise Unhealthy("the broker has not answered for a while, so it was not asked", retry_after_s=blocked_s)

    async def send(self, request: Request) -> Response:
        """See Transport. A 5xx counts as a failure: whoever gives it, what was asked for was not done."""
        self.check()
        if self.health.is_unhealthy:
            self.health.take_probe(anyio.current_time())
        try:
            response = await self._transport.send(request)
        except AttemptFailed:
            self.failed()
            raise
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.failed()
        else:
            self.health.succeeded()
        return response

    def resolved(self, request: Request) -> Awaitable[tuple[URL, dict[str, str]]]:
        """Where a request would go, and its headers. Raises TypeError if the transport does not tell."""
        if not isinstance(self._transport, HttpTransport):
            raise TypeError("only requests go through a transport of the caller's own")
        return self._transport.resolved(request)

    def failed(self) -> None:
        """An attempt had no usable answer."""
        self.health.failed(anyio.current_time())
        self._failed.ring()

    @property
    def carries_streams(self) -> bool:
        """Whether `resolved` tells, and connections of that kind get through as far as is known."""
        return self.streams and isinstance(self._transport, HttpTransport)

    async def probe(self) -> None:
        """Ask an unhealthy broker now and then how it is. Runs until it is cancelled."""
        while True:
            if not self.health.is_unhealthy:
                await self._failed.wait()
                continue
            await anyio.sleep(self.health.blocked_s(anyio.current_time()))
            try:
                await self.send(_PROBE)
            except ClientError:
                continue

    async def aclose(self) -> None:
        """See Transport."""
        await self._transport.aclose()
