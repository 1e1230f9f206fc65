"""How requests travel: one port, and HTTP by aiohttp behind it, bounded in size and in silence.

It does not judge what comes back, and does not repeat what failed, except that aiohttp asks once more by another
connection when an idle one turns out to be closed (RFC 9112 section 9.3.1), which it does for idempotent methods alone.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import parse_qsl, urlencode
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import certifi
from yarl import URL

from consumer.address import broker_url, is_local
from consumer.answer import Response, error_of, is_success, media_type
from consumer.errors import AttemptFailed, BadAnswer, TooLarge
from consumer.event_parser import Event, EventParser
from consumer.limits import RequestLimits
from consumer.values import Values, checked_headers, checked_params, evaluate
from consumer.wire import EVENT_STREAM

__all__ = ["EventConnection", "HttpTransport", "Pool", "Request", "Response", "Transport", "tls_context"]


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
    connection_idle_s: float = 5.0


_FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError)
_UNSENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
"""What fails before anything of the request has left."""
_PIECE_BYTES: Final = 64 * 1024
"""Of a body on its way out: each has as long as an answer may be silent."""


class HttpTransport:
    """HTTP/1.1 over pooled connections that are kept alive.

    `headers` and `params` go with every request, functions among them evaluated for each one. Proxies are those of the
    environment. Raises ValueError if the URL is not http or https, or a parameter is the protocol's own.
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
        broker = broker_url(base_url)
        self._base_url = str(broker).rstrip("/")
        self._limits = limits
        self._answer_bytes_max = pool.answer_bytes_max
        self._headers = checked_headers(headers)
        self._params = checked_params(params)
        self._tls = tls_context() if broker.scheme == "https" else None  # made once, whatever is renewed
        self._proxy = _proxy(broker)
        self._connections = pool
        # Between two processes of one machine compressing costs more than it saves. `headers` may ask for it.
        self._usual = {"accept-encoding": "identity"} if is_local(broker) else {}
        self._pool = _Pooled(self._session)

    async def send(self, request: Request) -> Response:
        """See Transport."""
        async with self._pool.in_use() as session:
            answer = await self._begin(session, request)
            try:
                return Response(answer.status, answer.headers, await self._body(answer))
            finally:
                answer.close()

    async def resolved(self, request: Request) -> tuple[URL, dict[str, str]]:
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
            session = await opened.enter_async_context(self._pool.in_use())
            answer = await self._begin(session, request, live)
            opened.callback(answer.close)
            if not is_success(answer.status):
                raise error_of(Response(answer.status, answer.headers, await self._body(answer)))
            if media_type(answer.headers.get("content-type", "")) != EVENT_STREAM:
                raise BadAnswer(f"asked for events and got {answer.headers.get('content-type', 'no content type')}")
            return EventConnection(answer, self._answer_bytes_max, opened.pop_all())

    async def renew(self) -> None:
        """Use none of the present connections again: they may be dead without a sign, as after a computer's sleep.

        Requests under way are not cut; theirs close as they end.
        """
        retired, self._pool = self._pool, _Pooled(self._session)
        await retired.retire()

    async def aclose(self) -> None:
        """See Transport."""
        await self._pool.aclose()

    def _session(self) -> aiohttp.ClientSession:
        pool = self._connections
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=pool.connections_max or 0,
                keepalive_timeout=pool.connection_idle_s,
                ssl=self._tls or False,  # False: a broker by http, and no request leaves for anywhere else
            ),
            headers=self._usual,
            proxy=self._proxy,
            skip_auto_headers=("content-type",),  # a request without a body has none
        )

    async def _begin(
        self, session: aiohttp.ClientSession, request: Request, more: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """The head of an answer; the body is still to be read, or to be closed."""
        url, headers = await self.resolved(request)
        silence_s_max = request.silence_s_max or self._limits.attempt_timeout_s
        headers = {**headers, **(more or {}), **request.headers}
        try:
            async with _patience(request.body, silence_s_max) as body:
                return await session.request(
                    request.method,
                    url,
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        connect=silence_s_max,  # for a free connection, too
                        sock_connect=self._limits.connect_timeout_s,
                        sock_read=silence_s_max,
                    ),
                )
        except _FAILURES as error:
            raise _attempt_failed(error) from error

    def _url(self, target: str, params: Mapping[str, str]) -> URL:
        text = self._base_url + target if target.startswith("/") else target
        if params:
            text, _, query = text.partition("?")
            merged = {**dict(parse_qsl(query, keep_blank_values=True)), **params}
            text = f"{text}?{urlencode(sorted(merged.items()))}"  # PROTOCOL.md 10.1
        return URL(text, encoded=True)

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            async for piece in answer.content.iter_any():
                pieces.append(piece)
                size_bytes += len(piece)
                if size_bytes > self._answer_bytes_max:
                    raise _too_large(self._answer_bytes_max)
        except _FAILURES as error:
            raise _attempt_failed(error) from error
        return b"".join(pieces)


class _Pooled:
    """A pool of connections, and how many requests use it: one that is retired is closed by the last of them.

    It is opened by the first request, since aiohttp wants to be inside the event loop.
    """

    def __init__(self, open_session: Callable[[], aiohttp.ClientSession]) -> None:
        self._open_session = open_session
        self._session: aiohttp.ClientSession | None = None
        self._requests = 0
        self._is_retired = False

    @asynccontextmanager
    async def in_use(self) -> AsyncGenerator[aiohttp.ClientSession, None]:
        if self._session is None:
            self._session = self._open_session()
        self._requests += 1
        try:
            yield self._session
        finally:
            self._requests -= 1
            await self._close_if_done()

    async def retire(self) -> None:
        self._is_retired = True
        await self._close_if_done()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _close_if_done(self) -> None:
        if self._is_retired and not self._requests:
            with anyio.CancelScope(shield=True):
                await self.aclose()


class EventConnection:
    """One live answer: events as they come, never more than `bytes_max` between two calls of `batch_taken`.

    `opened` closes all that it consists of.
    """

    def __init__(self, response: aiohttp.ClientResponse, bytes_max: int, opened: AsyncExitStack) -> None:
        self.headers: Mapping[str, str] = response.headers
        self.is_useful = False
        """Whether it brought anything new. The reader says so."""
        self.fell_silent = False
        """It was given up because nothing came for too long."""
        self._opened = opened
        self._content = response.content
        self._bytes_seen = 0
        self._bytes_max = bytes_max
        self._parser = EventParser()
        self._events: deque[Event] = deque()
        self._since_s = anyio.current_time()

    @property
    def age_s(self) -> float:
        return anyio.current_time() - self._since_s

    async def hear(self) -> None:
        """Return when anything has come, be it a comment, or the end. Raises as `next_event`."""
        await self._receive()

    async def next_event(self) -> Event | None:
        """The next event, or None when the server has ended the answer. One that is cut off is not seen.

        Raises AttemptFailed when the connection is lost or silent for too long, TooLarge, and BadAnswer for bytes that
        are not UTF-8.
        """
        while not self._events:
            if not await self._receive():
                return None
        return self._events.popleft()

    def batch_taken(self) -> None:
        """What has come so far is dealt with: count anew."""
        self._bytes_seen = 0

    async def aclose(self) -> None:
        await self._opened.aclose()

    async def _receive(self) -> bool:
        """Take what comes next. False when nothing more will."""
        try:
            piece = await self._content.readany()
        except _FAILURES as error:
            self.fell_silent = isinstance(error, aiohttp.SocketTimeoutError)
            raise _attempt_failed(error) from error
        self._bytes_seen += len(piece)
        if self._bytes_seen > self._bytes_max:  # what has no end yet is held, so the count bounds it
            raise _too_large(self._bytes_max)
        self._events += self._parser.feed(piece)
        return bool(piece)


@asynccontextmanager
async def _patience(body: bytes, silence_s_max: float) -> AsyncIterator[bytes | AsyncIterator[bytes] | None]:
    """What to send of a body: as long as pieces of it leave, nobody waits in vain. Raises TimeoutError."""
    if len(body) <= _PIECE_BYTES:
        yield body or None
        return
    is_waiting = True
    async with asyncio.timeout(silence_s_max) as deadline:

        def wait_until(at_s: float | None) -> None:
            if is_waiting:  # else it was answered before all of it had left
                deadline.reschedule(at_s)

        async def pieces() -> AsyncIterator[bytes]:
            for begin in range(0, len(body), _PIECE_BYTES):
                wait_until(asyncio.get_running_loop().time() + silence_s_max)
                yield body[begin : begin + _PIECE_BYTES]
            wait_until(None)  # from here on the answer is waited for, which has its own

        try:
            yield pieces()
        finally:
            is_waiting = False


def tls_context() -> ssl.SSLContext:
    """Trusts whom `SSL_CERT_FILE` or `SSL_CERT_DIR` name, or else Mozilla's list.

    Reading all certificates takes longer than opening a session does, and a broker by `http` needs none. Raises
    FileNotFoundError.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file or folder:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    return ssl.create_default_context(cafile=certifi.where())


def _proxy(broker: URL) -> str | None:
    """The proxy that the environment, or the system, names for this broker; there is none between it and this machine.

    Asked once: the answer takes its time.
    """
    if is_local(broker) or proxy_bypass(broker.host or ""):
        return None
    named = getproxies()
    proxy = named.get(broker.scheme) or named.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"more than {bytes_max} bytes in one answer or live batch; a limit of ours allows no more")


def _attempt_failed(error: Exception) -> AttemptFailed:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return AttemptFailed(text, effect_unknown=not isinstance(error, _UNSENT))
