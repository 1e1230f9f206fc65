"""How requests travel: one port, and HTTP by httpx behind it, bounded in size and in silence.

It does not retry, and it does not judge what comes back.
"""

from __future__ import annotations

import codecs
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent

from consumer.address import broker_url, is_local
from consumer.answer import Response, error_of, is_success, media_type
from consumer.errors import AttemptFailed, BadAnswer, TooLarge
from consumer.limits import RequestLimits
from consumer.values import Values, checked_headers, checked_params, evaluate
from consumer.wire import EVENT_STREAM

__all__ = ["EventConnection", "HttpTransport", "Pool", "Request", "Response", "Transport"]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    target: str
    """Path and query below the broker's URL, already escaped; or a whole URL on the same server."""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    silence_s_max: float | None = None
    """How long the answer may be silent; None is the transport's own limit."""


class Transport(Protocol):
    """Sends one request at a time for each caller, and may be called by many at once."""

    async def send(self, request: Request) -> Response:
        """The broker's answer, whatever its status.

        Raises AttemptFailed if there was none: no connection, a lost one, or silence. The request may then have had
        its effect, or may still have it later (`effect_unknown`). Raises TooLarge for an answer above the transport's
        limit, and ValueFailed. A cancelled send gives up its connection.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The connections that a transport keeps, and how much of an answer it holds in memory."""

    answer_bytes_max: int
    connections_max: int | None = None
    connections_idle_max: int | None = None
    connection_idle_s: float = 5.0


# What fails before anything of the request has left.
_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class HttpTransport:
    """HTTP/1.1 over pooled connections that are kept alive.

    `headers` and `params` go with every request, functions among them evaluated for each one. Raises ValueError if the
    URL is not http or https, or a parameter is the protocol's own.
    """

    def __init__(
        self,
        base_url: str,
        limits: RequestLimits,
        pool: Pool,
        *,
        headers: Values | None = None,
        params: Values | None = None,
    ) -> None:
        self._base_url = str(broker_url(base_url)).rstrip("/")
        self._limits = limits
        self._answer_bytes_max = pool.answer_bytes_max
        self._headers = checked_headers(headers)
        self._params = checked_params(params)
        self._client = partial(
            httpx.AsyncClient,
            verify=_tls_context(broker_url(base_url)),  # made once, whatever is renewed
            # Between two processes of one machine compressing costs more than it saves. `headers` may ask for it.
            headers={"accept-encoding": "identity"} if is_local(broker_url(base_url)) else None,
            limits=httpx.Limits(
                max_connections=pool.connections_max,
                max_keepalive_connections=pool.connections_idle_max,
                keepalive_expiry=pool.connection_idle_s,
            ),
        )
        self._pool = _Pooled(self._client())

    async def send(self, request: Request) -> Response:
        """See Transport."""
        async with self._pool.in_use() as client:
            answer = await self._begin(client, request)
            try:
                return Response(answer.status_code, answer.headers, await self._body(answer))
            finally:
                await answer.aclose()

    async def resolved(self, request: Request) -> tuple[httpx.URL, dict[str, str]]:
        """Where a request goes, with the parameters and the headers that go with every one. Raises ValueFailed."""
        wait_s_max = self._limits.attempt_timeout_s
        headers = await evaluate(self._headers, wait_s_max=wait_s_max)
        params = await evaluate(self._params, wait_s_max=wait_s_max)
        return self._url(request.target, params), headers

    async def connect(self, request: Request) -> EventConnection:
        """A live connection. Raises what the answer stands for if it is no success, BadAnswer if it is another kind."""
        # A compressing proxy would hold events back until its buffer is full.
        live = {"accept": EVENT_STREAM, "accept-encoding": "identity", "cache-control": "no-store"}
        async with AsyncExitStack() as opened:
            client = await opened.enter_async_context(self._pool.in_use())
            answer = await self._begin(client, request, live)
            opened.push_async_callback(answer.aclose)
            if not is_success(answer.status_code):
                raise error_of(Response(answer.status_code, answer.headers, await self._body(answer)))
            if media_type(answer.headers.get("content-type", "")) != EVENT_STREAM:
                raise BadAnswer(f"asked for events and got {answer.headers.get('content-type', 'no content type')}")
            return EventConnection(answer, self._answer_bytes_max, opened.pop_all())

    async def renew(self) -> None:
        """Use none of the present connections again: they may be dead without a sign, as after a computer's sleep.

        Requests under way are not cut; theirs close as they end.
        """
        retired, self._pool = self._pool, _Pooled(self._client())
        await retired.retire()

    async def aclose(self) -> None:
        """See Transport."""
        await self._pool.client.aclose()

    async def _begin(
        self, client: httpx.AsyncClient, request: Request, more: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The head of an answer; the body is still to be read, or to be closed."""
        url, headers = await self.resolved(request)
        silence_s_max = request.silence_s_max or self._limits.attempt_timeout_s
        built = client.build_request(
            request.method,
            url,
            headers={**headers, **(more or {}), **request.headers},
            content=request.body,
            timeout=httpx.Timeout(silence_s_max, connect=self._limits.connect_timeout_s),
        )
        try:
            return await client.send(built, stream=True)
        except httpx.RequestError as error:
            raise _attempt_failed(error) from error

    def _url(self, target: str, params: Mapping[str, str]) -> httpx.URL:
        url = httpx.URL(self._base_url + target if target.startswith("/") else target)
        if not params:
            return url
        merged = url.params.merge(params)
        return url.copy_with(params=sorted(merged.multi_items()))  # PROTOCOL.md 10.1

    async def _body(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        try:
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > self._answer_bytes_max:
                    raise _too_large(self._answer_bytes_max)
        except httpx.RequestError as error:
            raise _attempt_failed(error) from error
        return bytes(body)


class _Pooled:
    """A pool of connections, and how many requests use it: one that is retired is closed by the last of them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self._requests = 0
        self._is_retired = False

    @asynccontextmanager
    async def in_use(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        self._requests += 1
        try:
            yield self.client
        finally:
            self._requests -= 1
            await self._close_if_done()

    async def retire(self) -> None:
        self._is_retired = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._is_retired and not self._requests:
            with anyio.CancelScope(shield=True):
                await self.client.aclose()


class EventConnection:
    """One live answer: events as they come, never more than `bytes_max` between two calls of `batch_taken`.

    `opened` closes all that it consists of.
    """

    def __init__(self, response: httpx.Response, bytes_max: int, opened: AsyncExitStack) -> None:
        self.headers: Mapping[str, str] = response.headers
        self.is_useful = False
        """Whether it brought anything new. The reader says so."""
        self.fell_silent = False
        """It was given up because nothing came for too long."""
        self._opened = opened
        self._meter = _Meter(response, bytes_max)
        metered = httpx.Response(response.status_code, headers=response.headers, stream=self._meter)
        self._events = EventSource(metered).aiter_sse()
        self._since_s = anyio.current_time()

    @property
    def age_s(self) -> float:
        return anyio.current_time() - self._since_s

    async def hear(self) -> None:
        """Return when anything has come, be it a comment, or the end. Raises as `next_event`."""
        try:
            await self._meter.hear()
        except httpx.RequestError as error:
            raise _attempt_failed(error) from error

    async def next_event(self) -> ServerSentEvent | None:
        """The next event, or None when the server has ended the answer. One that is cut off is not seen.

        Raises AttemptFailed when the connection is lost or silent for too long, TooLarge, and BadAnswer for bytes that
        are not UTF-8.
        """
        try:
            return await anext(self._events, None)
        except httpx.RequestError as error:
            self.fell_silent = isinstance(error, httpx.ReadTimeout)
            raise _attempt_failed(error) from error

    def batch_taken(self) -> None:
        """What has come so far is dealt with: count anew."""
        self._meter.bytes_seen = 0

    async def aclose(self) -> None:
        async with self._opened:
            await self._events.aclose()


class _Meter(httpx.AsyncByteStream):
    """The body of a live answer, counted and checked.

    A parser keeps what has no end yet, so the count bounds what it holds. And it would put a replacement character for
    what is no UTF-8, so that is refused before.
    """

    def __init__(self, response: httpx.Response, bytes_max: int) -> None:
        self.bytes_seen = 0
        self._pieces = response.aiter_raw()
        self._heard = b""
        self._bytes_max = bytes_max
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    async def hear(self) -> None:
        self._heard = await anext(self._pieces, b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._take(self._heard)
        async for piece in self._pieces:
            yield self._take(piece)

    def _take(self, piece: bytes) -> bytes:
        self.bytes_seen += len(piece)
        if self.bytes_seen > self._bytes_max:
            raise _too_large(self._bytes_max)
        try:
            self._utf8.decode(piece)
        except UnicodeDecodeError as error:
            raise BadAnswer(f"events must be UTF-8: {error}") from error
        return piece


def _tls_context(broker: httpx.URL) -> ssl.SSLContext:
    """What `https` needs. Reading all certificates takes longer than opening a session does, and `http` uses none.

    No request leaves for anywhere else: targets are on the broker's server, and redirects are not followed. What `http`
    gets trusts nobody.
    """
    return httpx.create_ssl_context() if broker.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"more than {bytes_max} bytes in one answer or live batch; a limit of ours allows no more")


def _attempt_failed(error: httpx.RequestError) -> AttemptFailed:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return AttemptFailed(text, effect_unknown=not isinstance(error, _UNSENT))
