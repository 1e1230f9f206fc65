"""How reads travel: HTTP by httpx, bounded in size and in silence. It does not retry, and it does not interpret."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent

from consumer.answer import error_of, is_success
from consumer.errors import AttemptFailed, BadAnswer, TooLarge
from consumer.limits import Limits
from consumer.wire import EVENT_STREAM

__all__ = ["Answer", "EventConnection", "Transport"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of success; the names of `headers` are looked up in any case."""

    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to one broker, kept alive between requests."""

    def __init__(self, limits: Limits, headers: Mapping[str, str] | None = None) -> None:
        self._limits = limits
        self._client = httpx.AsyncClient(
            headers=dict(headers or {}),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=limits.connections_idle_max),
        )

    async def get(self, url: httpx.URL, *, silence_s_max: float) -> Answer:
        """The answer to one GET. Raises what it stands for if it is no success, TooLarge above the limit."""
        response = await self._send(url, silence_s_max, {})
        try:
            return Answer(response.headers, await self._body(response))
        finally:
            await response.aclose()

    async def connect(self, url: httpx.URL) -> EventConnection:
        """A live connection. Raises what the answer stands for if it is no success, BadAnswer if it is another kind."""
        # A compressing proxy would hold events back until its buffer is full.
        headers = {"accept": EVENT_STREAM, "accept-encoding": "identity", "cache-control": "no-store"}
        response = await self._send(url, self._limits.silence_s_max, headers)
        if response.headers.get("content-type", "").partition(";")[0].strip().lower() != EVENT_STREAM:
            await response.aclose()
            raise BadAnswer(f"asked for events and got {response.headers.get('content-type', 'no content type')}")
        return EventConnection(response, self._limits.batch_bytes_max)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(self, url: httpx.URL, silence_s_max: float, headers: Mapping[str, str]) -> httpx.Response:
        """The head of an answer of success; the body is still to be read, or to be closed."""
        timeout = httpx.Timeout(silence_s_max, connect=self._limits.connect_timeout_s)
        request = self._client.build_request("GET", url, headers=headers, timeout=timeout)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.RequestError as error:
            raise _attempt_failed(error) from error
        if is_success(response.status_code):
            return response
        try:
            raise error_of(response.status_code, response.headers, await self._body(response))
        finally:
            await response.aclose()

    async def _body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        try:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > self._limits.batch_bytes_max:
                    raise TooLarge(self._limits.batch_bytes_max)
        except httpx.RequestError as error:
            raise _attempt_failed(error) from error
        return bytes(body)


class EventConnection:
    """One live answer: events as they come, never more than `bytes_max` between two calls of `batch_taken`."""

    def __init__(self, response: httpx.Response, bytes_max: int) -> None:
        self.headers: Mapping[str, str] = response.headers
        self.is_useful = False
        """Whether it brought anything new. The reader says so."""
        self._response = response
        self._meter = _Meter(response, bytes_max)
        metered = httpx.Response(response.status_code, headers=response.headers, stream=self._meter)
        self._events = EventSource(metered).aiter_sse()
        self._since_s = anyio.current_time()

    @property
    def age_s(self) -> float:
        return anyio.current_time() - self._since_s

    async def next_event(self) -> ServerSentEvent | None:
        """The next event, or None when the server has ended the answer. One that is cut off is not seen.

        Raises AttemptFailed when the connection is lost or silent for too long, TooLarge.
        """
        try:
            return await anext(self._events, None)
        except httpx.RequestError as error:
            raise _attempt_failed(error) from error

    def batch_taken(self) -> None:
        """What has come so far is dealt with: count anew."""
        self._meter.bytes_seen = 0

    async def aclose(self) -> None:
        await self._events.aclose()
        await self._response.aclose()


class _Meter(httpx.AsyncByteStream):
    """The body of a response, counted. A parser keeps what has no end yet, so the count bounds what it holds."""

    def __init__(self, response: httpx.Response, bytes_max: int) -> None:
        self.bytes_seen = 0
        self._response = response
        self._bytes_max = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._response.aiter_raw():
            self.bytes_seen += len(piece)
            if self.bytes_seen > self._bytes_max:
                raise TooLarge(self._bytes_max)
            yield piece


def _attempt_failed(error: httpx.RequestError) -> AttemptFailed:
    return AttemptFailed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
