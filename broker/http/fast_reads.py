"""SSE readers without an ASGI task: the same events as `reads`, with less around them.

Most of what a busy broker does besides appends is to tell readers of them, and most of what a quiet one holds is
readers who wait. Behind ASGI each takes three tasks, and an event goes through all of them. Here a reader is an object
that its stream wakes and that writes to its socket in the same call; it has a task only while it has to wait for the
store, or for a client that takes its time.

Who is told what is decided by `following`, and a test holds the two ways to the same events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, ClassVar, Final

from broker import limits
from broker.errors import EngineStopped
from broker.http import sse
from broker.http.endpoint import Respond, answer_error
from broker.http.fast_path import AppendProtocol, FastAppends, lines
from broker.http.following import Followed, Follower, Told
from broker.http.request import Headers, Request, decode_path, headers_of, request_id_of
from broker.http.response import Response
from broker.http.stream_api import PREFIX
from broker.http.traffic import Traffic

log = logging.getLogger("streamfold.http")

_LIVE: Final = b"live=sse"
_UNUSUAL: Final = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-length"})
_END: Final = b"0\r\n\r\n"


class FastReads:
    """What readers need of the broker; one for all connections. `respond` is the stream API's."""

    def __init__(self, respond: Respond, traffic: Traffic) -> None:
        self.traffic = traffic
        self._respond = respond
        self._event = self._chunk = b""

    def takes(self, method: bytes, target: bytes, headers: Headers) -> bool:
        """Whether this request, of which the head has arrived, is for a stream's events."""
        if method != b"GET" or not target.startswith(PREFIX) or b"#" in target:
            return False
        return _LIVE in target.partition(b"?")[2].split(b"&") and _UNUSUAL.isdisjoint(headers)

    async def respond(self, target: bytes, headers: Headers, request_id: str, scheme: str) -> Response | Followed:
        """What the request gets, whatever happens."""
        path, _, query = target.partition(b"?")
        try:
            request = Request("GET", decode_path(path[len(PREFIX) :]), headers, query, path, request_id, scheme)
            response = await self._respond(request, _no_body)
        except Exception as error:  # noqa: BLE001 -- `answer_error` tells them apart
            response = answer_error(error, request_id, self.traffic)
        assert isinstance(response, Response | Followed)
        self.traffic.count(response.status if isinstance(response, Response) else 200)
        return response

    def chunk(self, event: bytes) -> bytes:
        """An event as it is sent: all readers at a tail are told the same one."""
        if event is not self._event:
            self._event, self._chunk = event, b"%x\r\n%b\r\n" % (len(event), event)
        return self._chunk


async def _no_body() -> MutableMapping[str, Any]:
    raise AssertionError("a read has no body")


class LiveReader:
    """A reader and its connection: to uvicorn's protocol what its own cycles are, and a `Watcher` of its stream."""

    __slots__ = (
        "_follower",
        "_protocol",
        "_reads",
        "_task",
        "_timer",
        "_told_s",
        "disconnected",
        "keep_alive",
        "response_complete",
    )
    message_event: ClassVar[asyncio.Event] = asyncio.Event()
    """Of the parts of a body, which there is none of."""
    for_page: ClassVar[bool] = True
    """It reads."""

    def __init__(self, reads: FastReads, protocol: ReadProtocol, *, keep_alive: bool) -> None:
        self._reads = reads
        self._protocol: ReadProtocol | None = protocol
        self._follower: Follower | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told_s = 0.0  # by the loop's clock
        self.keep_alive = keep_alive  # a server that shuts down takes it back
        self.disconnected = False
        self.response_complete = False

    def begin(self, target: bytes, headers: Headers) -> None:
        """Answer, and tell what is there."""
        self._task = asyncio.get_running_loop().create_task(self._guarded(target, headers))

    def wake(self) -> None:
        """Tell what there is now. What a client has no room for now is told when it has."""
        protocol, follower = self._protocol, self._follower
        if protocol is None or follower is None or self._task is not None or protocol.flow.write_paused:
            return
        try:
            now_s = protocol.loop.time()
            told = follower.look_newest(now_s)
            if told is not None:
                self._tell(protocol, told, now_s)
            if told is None or not (told.at_tail or told.over):
                self._task = asyncio.get_running_loop().create_task(self._guarded())
        except Exception as error:  # noqa: BLE001 -- others are woken behind this one
            self._fail(error)

    def leave(self) -> None:
        """The connection is lost, or the response is over."""
        self._protocol, follower, self._follower = None, self._follower, None
        if follower is not None:
            follower.unwatch(self)
            follower.feed.live.leave("sse")
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    # -- in a task ---------------------------------------------------------------------------------------------------

    async def _guarded(self, target: bytes = b"", headers: Headers | None = None) -> None:
        try:
            if headers is not None:
                await self._answer(target, headers)
            else:
                await self._catch_up()
        except Exception as error:  # noqa: BLE001 -- nobody awaits this task
            self._fail(error)
        finally:
            self._task = None

    async def _answer(self, target: bytes, headers: Headers) -> None:
        assert self._protocol is not None
        request_id = request_id_of(headers)
        response = await self._reads.respond(target, headers, request_id.decode(), self._protocol.scheme or "http")
        if isinstance(response, Response):
            self._protocol.answer(self, request_id.decode(), response)
            self.leave()
            return
        self._protocol.write_head(self, request_id, response)
        self._told_s = self._protocol.loop.time()
        if response.follower.is_mortal:
            await self._tell_all(response)
            return
        await response.chunks.aclose()
        self._follower = response.follower
        self._follower.feed.live.come("sse")
        self._follower.watch(self)
        self._wind(self._protocol)
        await self._catch_up()

    async def _tell_all(self, response: Followed) -> None:
        """Of a stream whose time runs out: somebody has to look at the clock."""
        assert self._protocol is not None
        flow = self._protocol.flow
        async with asyncio.timeout_at(self._stalled_at(response.follower)), aclosing(response.chunks):
            async for event in response.chunks:
                self._write(self._protocol, event, self._protocol.loop.time())
                await flow.drain()
        self._end(self._protocol)

    async def _catch_up(self) -> None:
        """Tell what there is, until there is nothing more: from there on the stream wakes this reader."""
        while self._protocol is not None and self._follower is not None:
            told = await self._follower.look()
            self._tell(self._protocol, told, self._protocol.loop.time())
            if told.at_tail or self._protocol is None:
                return
            await self._protocol.flow.drain()

    # -- to the socket -----------------------------------------------------------------------------------------------

    def _tell(self, protocol: ReadProtocol, told: Told, now_s: float) -> None:
        if told.data:
            self._write(protocol, told.data, now_s)
        if told.over:
            self._end(protocol)

    def _write(self, protocol: ReadProtocol, event: bytes, now_s: float) -> None:
        self._told_s = now_s
        protocol.transport.write(self._reads.chunk(event))

    def _end(self, protocol: ReadProtocol) -> None:
        self.response_complete = True
        self.leave()
        protocol.transport.write(_END)
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def _fail(self, error: Exception) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        if not isinstance(error, EngineStopped | TimeoutError):
            self._reads.traffic.bugs += 1
            log.error("events could not be told", exc_info=error)
        self.leave()
        # Without an end of the response: its reader has to come back. One that takes nothing would never see the rest.
        if protocol.flow.write_paused:
            protocol.transport.abort()
        else:
            protocol.transport.close()

    # -- the clock ---------------------------------------------------------------------------------------------------

    def _wind(self, protocol: ReadProtocol) -> None:
        """One timer, wound up when it has run down: most of what is told needs none."""
        assert self._follower is not None
        now_s, ends_at = protocol.loop.time(), self._follower.ends_at
        silent_at = self._told_s + self._follower.feed.keepalive_s
        due_s = min(silent_at, ends_at) if now_s < ends_at else self._stalled_at(self._follower)
        self._timer = protocol.loop.call_later(max(0.001, due_s - now_s), self._run_down)

    def _run_down(self) -> None:
        protocol, follower = self._protocol, self._follower
        if protocol is None or follower is None:
            return
        now_s = protocol.loop.time()
        if now_s >= self._stalled_at(follower):  # a client that takes nothing would be waited for without end
            self.leave()
            protocol.transport.abort()
            return
        self.wake()
        if self._follower is None:
            return
        if now_s >= self._told_s + follower.feed.keepalive_s and self._task is None and not protocol.flow.write_paused:
            self._write(protocol, sse.KEEP_ALIVE, now_s)
        self._wind(protocol)

    def _stalled_at(self, follower: Follower) -> float:
        return follower.ends_at + limits.SSE_STALL_S


class ReadProtocol(AppendProtocol):
    """uvicorn's, but for plain appends and for events."""

    reads: ClassVar[FastReads]
    _reader: LiveReader | None = None

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        if _LIVE in self.url and self._may_take():
            headers = headers_of(self.headers)
            if self.reads.takes(self.parser.get_method(), self.url, headers):
                self.cycle = self._reader = LiveReader(self.reads, self, keep_alive=self.parser.should_keep_alive())
                self._reader.begin(self.url, headers)
                self.url, self.headers = b"", []
                return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Nothing is behind the head of a read."""
        if isinstance(self.cycle, LiveReader):
            self._is_within = False
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        if self._reader is not None:
            self._reader.leave()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client has taken enough to be told more."""
        super().resume_writing()
        if self._reader is not None:
            self._reader.wake()

    def write_head(self, reader: LiveReader, request_id: bytes, response: Followed) -> None:
        """Send the head of a response whose body comes over time."""
        headers = [(b"x-request-id", request_id), *response.headers, (b"transfer-encoding", b"chunked")]
        if not reader.keep_alive:
            headers.append((b"connection", b"close"))
        head = self.appends.head(HTTPStatus.OK, self.server_state.default_headers, for_page=True)
        self.transport.write(b"".join([head, lines(headers), b"\r\n"]))


def protocol(appends: FastAppends, reads: FastReads) -> type[ReadProtocol]:
    """The class for uvicorn's `http` setting."""
    return type("Protocol", (ReadProtocol,), {"appends": appends, "reads": reads})
