"""The protocol's reads: HEAD, catch-up, long-poll and SSE (PROTOCOL.md 5.5 to 5.8, 8, 10).

Reads pull. A reader is a position and whether it waits: it takes what lies behind its position, and waits on its stream
when there is nothing. Nothing is kept for it here, so a slow one costs a socket.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from broker.core.offset import InvalidOffset
from broker.core.state import Stream
from broker.http import caching, sse
from broker.http.following import Feed, Followed, Follower, wait_for_more
from broker.http.live_readers import LiveReaders
from broker.http.looks import Look, Looks, body_of
from broker.http.problems import BadRequest
from broker.http.request import Request, parameters_of
from broker.http.response import NO_BODY, Header, LiveResponse, Response
from broker.http.streams import CLOSED
from broker.partitions import Partitioned
from broker.settings import Settings
from consumer.wire import EVENT_STREAM, OFFSET_NOW, OFFSET_START, Code

UP_TO_DATE: Final[Header] = (b"stream-up-to-date", b"true")
# A stream's content is whatever its writer put there. Opened as a page of ours it must run nothing.
_SANDBOX: Final[Header] = (b"content-security-policy", b"default-src 'none'; sandbox")
SSE_HEADERS: Final[list[Header]] = [
    (b"content-type", EVENT_STREAM.encode()),
    # A proxy that stores, compresses or buffers events delays them until it has enough of them.
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class Pending(msgspec.Struct, frozen=True):
    """A response that has yet to come: whoever has it awaits it, or closes it when nobody wants it any more."""

    response: Coroutine[Any, Any, Response]


class Reads:
    """The reading half of `/v1/stream/{path}`."""

    def __init__(self, partition: Partitioned, settings: Settings, live: LiveReaders) -> None:
        self._partition = partition
        self._settings = settings
        self._live = live
        self._looks = Looks(partition)
        self._feed = Feed(partition, settings, self._looks, live)

    async def head(self, request: Request) -> Response:
        """PROTOCOL.md 5.5. Renews no TTL. Raises BadRequest."""
        stream = await self._looks.stream(request.path)
        headers: list[Header] = [
            (b"content-type", stream.content_type.encode()),
            (b"stream-next-offset", stream.offset(stream.tail).encode()),
            caching.NO_STORE,
        ]
        if stream.closed:
            headers.append(CLOSED)
        if stream.ttl_s is not None:
            headers.append((b"stream-ttl", b"%d" % stream.ttl_s))
        if stream.expires_at is not None:
            headers.append((b"stream-expires-at", stream.expires_at.encode("latin-1")))
        return Response(200, headers)

    async def get(self, request: Request) -> Response | Pending | LiveResponse:
        """PROTOCOL.md 5.6 to 5.8. Raises BadRequest, Overloaded, Unavailable."""
        parameters = parameters_of(request.query)
        mode = parameters.get("live")
        if mode not in (None, "long-poll", "sse"):
            raise BadRequest(Code.INVALID_PARAMETER, "live is neither long-poll nor sse")
        offset = parameters.get("offset")
        seen = request.headers.get(b"last-event-id")
        if mode == "sse" and seen:  # a browser that reconnects by itself repeats its first URL, which is behind by now
            offset = seen.decode("latin-1")
        if mode is not None and offset is None:
            raise BadRequest(Code.INVALID_OFFSET, "a live read needs an offset")
        stream = await self._looks.stream(request.path)
        start = position_of(offset, stream)
        self._partition.touch(request.path, stream)
        if mode is None:
            return await self._catch_up(request, stream, start, now=offset == OFFSET_NOW)
        self._live.require_room()
        jitter_s = random.randint(1, 3600)  # noqa: S311 -- it spreads load, it guards nothing
        cursor = caching.cursor(self._partition.now_ms(), parameters.get("cursor"), jitter_s)
        if mode == "long-poll":
            return await self._long_poll(request, stream, start, cursor)
        headers = list(SSE_HEADERS)
        if not sse.is_text(stream.content_type):
            headers.append((b"stream-sse-data-encoding", b"base64"))
        follower = Follower(self._feed, request.path, stream, start, cursor)
        return Followed(headers, follower.events(), follower)

    # -- catch-up ----------------------------------------------------------------------------------------------------

    async def _catch_up(self, request: Request, stream: Stream, start: int, *, now: bool) -> Response:
        if now:  # the tail at this moment: nobody may keep that (PROTOCOL.md 8)
            return _page_response(Look(stream, start, None), [caching.NO_STORE])
        look = await self._looks.at(request.path, stream.incarnation, start)
        tag = caching.etag(look.stream, start, look.end, closed=look.at_eof)
        kept = self._kept(request, look)
        if caching.matches(request.headers.get(b"if-none-match"), tag):
            return Response(304, [(b"etag", tag), kept, *_place(look)])
        return _page_response(look, [(b"etag", tag), kept])

    # -- long-poll ---------------------------------------------------------------------------------------------------

    async def _long_poll(self, request: Request, stream: Stream, start: int, cursor: int) -> Response | Pending:
        look = await self._looks.at(request.path, stream.incarnation, start)
        if look.page is None and not look.stream.closed:
            return Pending(self._waited(request, look, cursor))
        return self._polled(request, look, cursor)

    async def _waited(self, request: Request, look: Look, cursor: int) -> Response:
        return self._polled(request, await self._wait_for_more(request.path, look), cursor)

    def _polled(self, request: Request, look: Look, cursor: int) -> Response:
        told = (b"stream-cursor", b"%d" % cursor)
        kept = self._kept(request, look)
        if look.page is None:
            headers = [kept, *_place(look)]
            return Response(204, headers if look.stream.closed else [*headers, told])
        tag = caching.etag(look.stream, look.start, look.end, closed=look.at_eof)
        return _page_response(look, [(b"etag", tag), kept, told])

    def _kept(self, request: Request, look: Look) -> Header:
        """For how long what a look saw may be kept; not if the same request may see something else already.

        The end is kept like a page: all readers ask for it at once, and what a cache must not keep it cannot share out.
        """
        nothing_yet = look.page is None and not look.at_eof
        if nothing_yet or parameters_of(request.query).get("offset") == OFFSET_NOW:
            return caching.NO_STORE
        return caching.cache_control(request.path, look.stream, self._partition.now_ms())

    async def _wait_for_more(self, path: str, look: Look) -> Look:
        """The first look that sees a record or the end; the last one when the time is up."""
        ends_at = _clock() + self._settings.long_poll_s
        with self._live.counted("long-poll"):
            while look.page is None and not look.stream.closed and not self._partition.draining:
                left_s = ends_at - _clock()
                if left_s <= 0:
                    break
                await wait_for_more(self._partition, path, look.stream, look.end, left_s)
                look = await self._looks.at(path, look.stream.incarnation, look.start)
        return look


def _clock() -> float:
    return asyncio.get_running_loop().time()


def position_of(offset: str | None, stream: Stream) -> int:
    """Where in this life of the stream a reader wants to begin. Raises BadRequest for an offset that is none of its."""
    if offset is None or offset == OFFSET_START:
        return 0
    if offset == OFFSET_NOW:
        return stream.tail
    try:
        position = stream.position(offset)
    except InvalidOffset:
        raise BadRequest(Code.INVALID_OFFSET, "not an offset of this broker") from None
    if position is None:
        raise BadRequest(Code.OFFSET_GONE, "the stream was deleted and created anew")
    if position > stream.tail:
        raise BadRequest(Code.INVALID_OFFSET, "beyond the end of the stream")
    return position


def _place(look: Look) -> list[Header]:
    headers: list[Header] = [(b"stream-next-offset", look.stream.offset(look.end).encode())]
    if look.up_to_date:
        headers.append(UP_TO_DATE)
    if look.at_eof:
        headers.append(CLOSED)
    return headers


def _page_response(look: Look, headers: list[Header]) -> Response:
    body = body_of(look.page) if look.page is not None else b"[]" if look.stream.is_json else b""
    return Response(
        200,
        [
            (b"content-type", look.stream.content_type.encode()),
            (b"content-length", b"%d" % len(body)) if body else NO_BODY,
            *headers,
            *_place(look),
            _SANDBOX,
        ],
        body,
    )
