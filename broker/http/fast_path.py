"""Appends without an ASGI task, to streams and to generations: the same decisions as `stream_api` and `session_api`.

Most of what a broker does is small appends, and for them a task, a context and four awaits cost as much as everything
else. Here the bytes of a request lead to an entry as they arrive, plain ones past the parser (`plain_head`), and its
outcome is written to the socket as soon as it is known. Anything unusual goes the usual way: another method or path, a
large body, `Expect`, an upgrade, a connection that does not take its answers, a broker without room.

`fast_reads` has what goes into uvicorn's `http` setting. Entries and answers are made by the functions of `streams`,
`session_requests` and `session_answers`, and a test holds the two ways to the same answers.
"""

from __future__ import annotations

import logging
import re
from asyncio import TimerHandle
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, ClassVar, Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.core.entry import Entry
from broker.core.outcome import Outcome
from broker.http import session_answers, session_requests, session_routes
from broker.http.direct import EXTENSION, DirectBody
from broker.http.endpoint import answer_error
from broker.http.plain_head import PlainHead, is_unusual, read_plain_head
from broker.http.problems import Form, answer_with
from broker.http.request import Headers, Request, Scope, decode_path, headers_of, request_id_of
from broker.http.response import COMMON, TO_ANYBODY, Header, Response, is_for_page
from broker.http.stream_api import PREFIX, is_reserved
from broker.http.streams import answer, entry_of, require_method
from broker.http.traffic import Traffic
from broker.partitions import Partitioned
from consumer.wire import JSON, NDJSON

log = logging.getLogger("streamfold.http")

_STATUS_LINE: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}

_JSON: Final = JSON.encode()
_BATCHES: Final = session_routes.PREFIX.encode()
_BEHIND_PATH: Final = re.compile(rb"[?#]")


def lines(headers: Iterable[Header]) -> bytes:
    """Headers as they are sent."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_COMMON: Final = {True: lines(COMMON), False: lines(TO_ANYBODY)}


class Cycle(Protocol):
    """A request in hand, as `AppendProtocol.answer` needs it."""

    keep_alive: bool
    response_complete: bool

    @property
    def for_page(self) -> bool:
        """See `is_for_page`."""
        ...


Answer = Callable[[Cycle, str, Response], None]
"""Takes the answer: to which request, its id, and the response."""


class Append:
    """A plain append in hand.

    To uvicorn's protocol it is what its own cycles are, and no more of that than it looks at; to the partition it is a
    `Waiter` that answers as soon as it is told: a future would do so a turn of the event loop later.
    """

    __slots__ = (
        "_appends",
        "_entry",
        "_request",
        "_request_id",
        "_tell",
        "body",
        "disconnected",
        "for_page",
        "headers",
        "keep_alive",
        "message_event",
        "response_complete",
    )

    def __init__(self, appends: FastAppends, headers: Headers, tell: Answer, *, keep_alive: bool) -> None:
        self._appends = appends
        self._tell = tell
        self.headers = headers
        self.for_page = is_for_page("POST", headers)
        self.keep_alive = keep_alive  # a server that shuts down takes it back
        self.body = b""
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY

    def begin(self, target: bytes, body: bytes) -> bool:
        """Propose what a whole request asks for; it is answered at once when it makes no sense.

        False: it has to go the usual way, and nothing is answered.
        """
        self._request_id = request_id = request_id_of(self.headers).decode()
        partition = self._appends.partition
        try:
            entry = self._entry_of(target, request_id, body)
            if entry is None or not partition.has_room(entry):
                return False
            self._entry = entry
            partition.propose_for(self, entry)
        except Exception as error:  # noqa: BLE001 -- `answer_error` tells them apart
            self.set_exception(error)
        return True

    def _entry_of(self, target: bytes, request_id: str, body: bytes) -> Entry | None:
        """None for what is no plain append after all. Raises BadRequest."""
        path = decode_path(target[len(PREFIX) :])
        if is_reserved(path):
            return None
        require_method("POST", path)
        self._request = request = Request("POST", path, self.headers, b"", target, request_id)
        return entry_of(request, body)

    def _response_to(self, outcome: Outcome) -> Response:
        return answer(self._request, self._entry, outcome, self._appends.partition.durability)

    def done(self) -> bool:
        """As in `Waiter`."""
        return False

    def set_result(self, outcome: Outcome) -> None:
        """Answer with what the entry did. Never raises: others wait behind this."""
        try:
            response = self._response_to(outcome)
        except Exception as error:  # noqa: BLE001 -- a bug of ours, and this request's alone
            self.set_exception(error)
        else:
            self._answer(response)

    def set_exception(self, error: Exception) -> None:
        """Answer with why there is no outcome. Never raises, as above."""
        self._answer(answer_error(error, self._request_id, self._appends.traffic, self._form()))

    def _form(self) -> Form:
        return answer_with

    def _answer(self, response: Response) -> None:
        traffic = self._appends.traffic
        traffic.count(response.status)
        try:
            self._tell(self, self._request_id, response)
        except Exception:  # a bug of ours, and this connection's alone: others are answered behind it
            traffic.bugs += 1
            log.exception("the answer to %s could not be sent", self._request_id)


class Batch(Append):
    """A plain batch of a generation in hand."""

    __slots__ = ("_named",)

    _named: session_routes.Target | None

    def _entry_of(self, target: bytes, request_id: str, body: bytes) -> Entry | None:
        self._named = None
        path = decode_path(target[len(_BATCHES) :])
        named = session_routes.target_of("POST", path)
        if named.action != "chunks":
            return None
        self._named = named
        request = Request("POST", path, self.headers, b"", target, request_id)
        return session_requests.entry_of(request, named, body)

    def _response_to(self, outcome: Outcome) -> Response:
        assert self._named is not None
        return session_answers.answer(self._named, self._entry, outcome, self._appends.partition.durability)

    def _form(self) -> Form:
        return answer_with if self._named is None else session_answers.about(self._named)


class _Nobody:
    """Who waits for the parts of an append's body."""

    def set(self) -> None:
        """A part has come."""


_NOBODY: Final = _Nobody()


class FastAppends:
    """What appends need of the broker; one for all connections."""

    def __init__(self, partition: Partitioned, traffic: Traffic, body_bytes_max: int) -> None:
        self.partition = partition
        self.traffic = traffic
        # Above its own mark uvicorn stops reading until an application asks for more.
        self.body_bytes_max = min(body_bytes_max, HIGH_WATER_LIMIT)
        """Of a plain append."""
        self._dated: list[Header] | None = None
        self._heads: dict[tuple[int, bool], bytes] = {}

    def head(self, status: int, default_headers: list[Header], *, for_page: bool) -> bytes:
        """What every answer of this status begins with; uvicorn's headers, the date, are a new list each second."""
        if default_headers is not self._dated:
            self._dated, self._heads = default_headers, {}
        head = self._heads.get((status, for_page))
        if head is None:
            head = _STATUS_LINE[status] + lines(default_headers) + _COMMON[for_page]
            self._heads[status, for_page] = head
        return head

    def kind_of(self, method: bytes, target: bytes, headers: Headers) -> type[Append] | None:
        """What to `begin` for this request, of which the head has arrived; None when it is no plain append."""
        if method != b"POST" or _BEHIND_PATH.search(target) or is_unusual(headers):
            return None
        length = headers.get(b"content-length", b"")
        return _kind(target, headers) if length.isdigit() and int(length) <= self.body_bytes_max else None

    def kind_of_plain(self, head: PlainHead) -> type[Append] | None:
        """The same of one whose head is plain."""
        return _kind(head.target, head.headers) if head.body_bytes <= self.body_bytes_max else None


def _kind(target: bytes, headers: Headers) -> type[Append] | None:
    """What a POST may be. No upload is plain, nor what asks for an early answer."""
    if target.startswith(PREFIX):
        return Append
    is_batch = target.startswith(_BATCHES) and target.endswith(b"/chunks")
    return Batch if is_batch and headers.get(b"content-type") == _JSON and b"prefer" not in headers else None


class AppendProtocol(HttpToolsProtocol):
    """uvicorn's, but for plain appends. Order on a connection is uvicorn's business, and stays it."""

    appends: ClassVar[FastAppends]
    _is_within = False  # a request that the parser has not seen the end of
    cycle: Any  # a RequestResponseCycle of uvicorn's, an Append, or None
    _idle_from_s: float | None = None  # by the loop's clock; None while a request is arriving or in hand
    _idle_timer: TimerHandle | None = None
    _direct: DirectBody | None = None  # for the request that is arriving

    def data_received(self, data: bytes) -> None:
        """Begin an append that is here as a whole and plain; anything else is for the parser."""
        if self._is_within or not self._is_free() or not self._append(data):
            super().data_received(data)

    def _append(self, data: bytes) -> bool:
        head = read_plain_head(data)
        kind = None if head is None else self.appends.kind_of_plain(head)
        if head is None or kind is None:
            return False
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._idle_from_s = None
        before = self.cycle
        self.cycle = append = kind(self.appends, head.headers, self.answer, keep_alive=True)
        begun = append.begin(head.target, data[len(data) - head.body_bytes :])
        if not begun:
            self.cycle = before
        return begun

    def on_message_begin(self) -> None:
        """Get ready for a request; the scope, which an append does without, is made when it is needed."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._idle_from_s = self._direct = None
        self._is_within = True

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        headers = headers_of(self.headers)
        kind = self.appends.kind_of(self.parser.get_method(), self.url, headers) if self._may_take() else None
        if kind is not None:
            self.cycle = kind(self.appends, headers, self.answer, keep_alive=self.parser.should_keep_alive())
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
        self._is_within = False
        append = self.cycle
        if not isinstance(append, Append):
            super().on_message_complete()
        elif not append.response_complete and not append.begin(self.url, append.body):
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
        if self.flow.read_paused:
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

    def _may_take(self) -> bool:
        """Whether the request of which the parser has seen the head may be answered here."""
        return self._is_free() and self.parser.get_http_version() == "1.1"

    def _is_free(self) -> bool:
        """Whether a request may be answered here: nothing is in hand, and the connection takes its answers."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and (self.limit_concurrency is None or len(self.connections) < self.limit_concurrency)
        )

    def answer(self, cycle: Cycle, request_id: str, response: Response) -> None:
        """What uvicorn's own `send` does with a response that is whole."""
        cycle.response_complete = True
        transport = self.transport
        if transport.is_closing():
            return
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        head = self.appends.head(response.status, self.server_state.default_headers, for_page=cycle.for_page)
        transport.write(
            b"%bx-request-id: %b\r\n%b%b%b" % (head, request_id.encode(), lines(response.headers), end, response.body)
        )
        if not cycle.keep_alive:
            transport.close()
        self.on_response_complete()
