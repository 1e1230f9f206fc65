"""Appends to streams without an ASGI task: the same decisions as `stream_api`, with less around them.

Most of what a broker does is small appends, and for them a task, a context and four awaits cost as much as everything
else. Here the bytes of a request lead to an entry in the parser's own call, and its outcome is written to the socket by
the future's. Anything unusual goes the usual way: another method or path, a large body, `Expect`, an upgrade, a
connection that does not take its answers, a broker without room.

`fast_reads` has what goes into uvicorn's `http` setting. Entries and answers are made by the functions of `streams`,
and a test holds the two ways to the same answers.
"""

from __future__ import annotations

import logging
from asyncio import TimerHandle
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.core.entry import Entry
from broker.core.outcome import Outcome
from broker.http.direct import EXTENSION, DirectBody
from broker.http.endpoint import answer_error
from broker.http.request import Headers, Request, Scope, decode_path, headers_of, request_id_of
from broker.http.response import COMMON, Header, Response
from broker.http.stream_api import PREFIX, is_reserved
from broker.http.streams import answer, entry_of, require_method
from broker.http.traffic import Traffic
from broker.partitions import Partitioned
from consumer.wire import NDJSON

log = logging.getLogger("streamfold.http")

Tell = Callable[[str, Response], None]
"""Takes the answer: request id and response."""

_STATUS_LINE: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_UNUSUAL: Final = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-encoding"})


def _lines(headers: Iterable[Header]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_COMMON: Final = _lines(COMMON)


class Append:
    """A plain append in hand: to uvicorn's protocol what its own cycles are, and no more of that than it looks at."""

    __slots__ = ("body", "disconnected", "headers", "keep_alive", "message_event", "more_body", "response_complete")

    def __init__(self, headers: Headers, *, keep_alive: bool) -> None:
        self.headers = headers
        self.keep_alive = keep_alive  # a server that shuts down takes it back
        self.body = b""
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY


class _Nobody:
    """Who waits for the parts of an append's body."""

    def set(self) -> None:
        """A part has come."""


_NOBODY: Final = _Nobody()


class FastAppends:
    """What appends need of the broker; one for all connections."""

    def __init__(self, partition: Partitioned, traffic: Traffic, body_bytes_max: int) -> None:
        self._partition = partition
        self._traffic = traffic
        # Above its own mark uvicorn stops reading until an application asks for more.
        self._body_bytes_max = min(body_bytes_max, HIGH_WATER_LIMIT)
        self._dated: list[Header] | None = None
        self._date = b""

    def date(self, default_headers: list[Header]) -> bytes:
        """The lines of uvicorn's default headers, the date among them: a new list every second."""
        if default_headers is not self._dated:
            self._dated, self._date = default_headers, _lines(default_headers)
        return self._date

    def takes(self, method: bytes, target: bytes, headers: Headers) -> bool:
        """Whether this request, of which the head has arrived, is a plain append."""
        if method != b"POST" or not target.startswith(PREFIX) or b"?" in target or not _UNUSUAL.isdisjoint(headers):
            return False
        length = headers.get(b"content-length", b"")
        return length.isdigit() and int(length) <= self._body_bytes_max

    def begin(self, target: bytes, headers: Headers, body: bytes, tell: Tell) -> bool:
        """Propose what a whole request asks for; `tell` gets the answer, at once when it makes no sense.

        False: it has to go the usual way, and `tell` hears nothing.
        """
        request_id = request_id_of(headers).decode()
        try:
            path = decode_path(target[len(PREFIX) :])
            if is_reserved(path):
                return False
            require_method("POST", path)
            request = Request("POST", path, headers, b"", target, request_id)
            entry = entry_of(request, body)
            if not self._partition.has_room(entry):
                return False
            self._partition.propose_for(_Proposed(self, request, entry, tell), entry)
        except Exception as error:  # noqa: BLE001 -- `answer_error` tells them apart
            self.tell_error(tell, request_id, error)
        return True

    def tell(self, tell: Tell, request: Request, entry: Entry, outcome: Outcome) -> None:
        """Answer with what the entry did. Never raises: others wait behind this."""
        try:
            response = answer(request, entry, outcome, self._partition.durability)
        except Exception as error:  # noqa: BLE001 -- a bug of ours, and this request's alone
            response = answer_error(error, request.request_id, self._traffic)
        self._send(tell, request.request_id, response)

    def tell_error(self, tell: Tell, request_id: str, error: Exception) -> None:
        """Answer with why there is no outcome. Never raises, as above."""
        self._send(tell, request_id, answer_error(error, request_id, self._traffic))

    def _send(self, tell: Tell, request_id: str, response: Response) -> None:
        self._traffic.count(response.status)
        try:
            tell(request_id, response)
        except Exception:
            self._traffic.bugs += 1
            log.exception("the answer to %s could not be sent", request_id)


class _Proposed:
    """A `partition.Waiter` that answers as soon as it is told: a future would do so a turn of the event loop later."""

    __slots__ = ("_appends", "_entry", "_request", "_tell")

    def __init__(self, appends: FastAppends, request: Request, entry: Entry, tell: Tell) -> None:
        self._appends = appends
        self._request = request
        self._entry = entry
        self._tell = tell

    def done(self) -> bool:
        return False

    def set_result(self, outcome: Outcome) -> None:
        self._appends.tell(self._tell, self._request, self._entry, outcome)

    def set_exception(self, error: Exception) -> None:
        self._appends.tell_error(self._tell, self._request.request_id, error)


class AppendProtocol(HttpToolsProtocol):
    """uvicorn's, but for plain appends. Order on a connection is uvicorn's business, and stays it."""

    appends: ClassVar[FastAppends]
    cycle: Any  # a RequestResponseCycle of uvicorn's, an Append, or None
    _idle_from_s: float | None = None  # by the loop's clock; None while a request is arriving or in hand
    _idle_timer: TimerHandle | None = None
    _direct: DirectBody | None = None  # for the request that is arriving

    def on_message_begin(self) -> None:
        """Get ready for a request; the scope, which an append does without, is made when it is needed."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._idle_from_s = self._direct = None

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        headers = headers_of(self.headers)
        if self._is_free() and self.appends.takes(self.parser.get_method(), self.url, headers):
            self.cycle = Append(headers, keep_alive=self.parser.should_keep_alive())
        else:
            self._go_the_usual_way()
            if headers.get(b"content-type", b"").startswith(NDJSON.encode()):
                self._offer_direct()

    def _offer_direct(self) -> None:
        self._direct = DirectBody(self, self.cycle)
        scope: Scope = self.scope  # type: ignore[assignment]  # of ASGI's extensions uvicorn names those that it has
        scope["extensions"] = {EXTENSION: self._direct}

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        if isinstance(self.cycle, Append):
            self.cycle.body += body
        elif self._direct is None or not self._direct.takes(body):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin an append that is here as a whole."""
        append = self.cycle
        if not isinstance(append, Append):
            super().on_message_complete()
        elif not append.response_complete:
            append.more_body = False
            if not self.appends.begin(self.url, append.headers, append.body, partial(self._answer, append)):
                append.response_complete = True  # it never was one: head and body go to uvicorn as they came
                self._go_the_usual_way()
                self.cycle.body += append.body
                super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, for as long as uvicorn would: with one timer, not with a new one each time."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_from_s = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._end_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def _end_idle(self) -> None:
        self._idle_timer = None
        if self._idle_from_s is None:  # the answer will wind it up again
            return
        left_s = self._idle_from_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._end_idle)
        else:
            self.timeout_keep_alive_handler()

    def _go_the_usual_way(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)  # the scope has this list
        super().on_headers_complete()

    def _is_free(self) -> bool:
        """Whether a request may be answered here: nothing is in hand, and the connection takes its answers."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and (self.limit_concurrency is None or len(self.connections) < self.limit_concurrency)
        )

    def _answer(self, append: Append, request_id: str, response: Response) -> None:
        """What uvicorn's own `send` does with a response that is whole."""
        append.response_complete = True
        if self.transport.is_closing():
            return
        head = [_STATUS_LINE[response.status], self.appends.date(self.server_state.default_headers), _COMMON]
        head += (b"x-request-id: ", request_id.encode(), b"\r\n")
        for name, value in response.headers:
            head += (name, b": ", value, b"\r\n")
        head.append(b"\r\n" if append.keep_alive else b"connection: close\r\n\r\n")
        self.transport.write(b"".join(head) + response.body)
        if not append.keep_alive:
            self.transport.close()
        self.on_response_complete()
