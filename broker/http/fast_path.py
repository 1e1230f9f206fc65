"""Appends to streams without an ASGI task: the same decisions as `stream_api`, with less around them.

Most of what a broker does is small appends, and for them a task, a context and four awaits cost as much as everything
else. Here the bytes of a request lead to an entry in the parser's own call, and its outcome is written to the socket by
the future's. Anything unusual goes the usual way: another method or path, a large body, `Expect`, an upgrade, a
connection that does not take its answers, a broker without room.

`protocol` is for uvicorn's `http` setting. Requests and answers are those of `streams`; a test holds the two ways to
the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from broker.core.outcome import Outcome
from broker.http.endpoint import answer_error
from broker.http.request import Request, decode_path, headers_of, request_id_of
from broker.http.response import COMMON, Header, Response
from broker.http.stream_api import PREFIX, is_reserved
from broker.http.streams import answer, entry_of, require_method
from broker.http.traffic import Traffic
from broker.partition import Partition

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, HTTPScope

_STATUS_LINE: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_UNUSUAL: Final = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-encoding"})


def _lines(headers: Iterable[Header]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_COMMON: Final = _lines(COMMON)


class FastAppends:
    """What appends need of the broker; one for all connections."""

    def __init__(self, partition: Partition, traffic: Traffic, body_bytes_max: int) -> None:
        self._partition = partition
        self._traffic = traffic
        self._default: list[Header] | None = None
        self._default_bytes = b""
        # Above its own mark uvicorn stops reading until an application asks for more.
        self._body_bytes_max = min(body_bytes_max, HIGH_WATER_LIMIT)

    def takes(self, scope: HTTPScope) -> bool:
        """Whether this request, of which the head has arrived, is a plain append."""
        if scope["method"] != "POST" or not scope["raw_path"].startswith(PREFIX):
            return False
        length = b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = value
            elif name in _UNUSUAL:
                return False
        return length.isdigit() and int(length) <= self._body_bytes_max

    def begin(self, cycle: RequestResponseCycle) -> bool:
        """Propose what a whole request asks for; it is answered when that is durable.

        What makes no sense is answered at once. False: it has to go the usual way.
        """
        scope = cycle.scope
        headers = headers_of(scope["headers"])
        id_bytes = request_id_of(headers)
        request_id = id_bytes.decode()
        raw_path = scope["raw_path"]
        try:
            path = decode_path(raw_path[len(PREFIX) :])
            if is_reserved(path):
                return False
            require_method("POST", path)
            request = Request("POST", path, headers, scope["query_string"], raw_path, request_id, scope["scheme"])
            entry = entry_of(request, bytes(cycle.body))
            if not self._partition.has_room(entry):
                return False
            proposed = self._partition.propose_nowait(entry)
        except Exception as error:  # noqa: BLE001 -- `answer_error` tells them apart
            self._send(cycle, id_bytes, answer_error(error, request_id, self._traffic))
            return True

        def on_outcome(future: asyncio.Future[Outcome]) -> None:
            try:
                response = answer(request, entry, future.result(), self._partition.durability)
            except Exception as error:  # noqa: BLE001 -- as above
                response = answer_error(error, request_id, self._traffic)
            self._send(cycle, id_bytes, response)

        proposed.add_done_callback(on_outcome)
        return True

    def _default_lines(self, headers: list[Header]) -> bytes:
        """The date, from uvicorn: in a new list every second."""
        if headers is not self._default:
            self._default, self._default_bytes = headers, _lines(headers)
        return self._default_bytes

    def _send(self, cycle: RequestResponseCycle, request_id: bytes, response: Response) -> None:
        """What uvicorn's own `send` does with a response that is whole."""
        self._traffic.count(response.status)
        if cycle.disconnected:
            return
        parts = [
            _STATUS_LINE[response.status],
            self._default_lines(cycle.default_headers),
            _COMMON,
            b"x-request-id: %b\r\n" % request_id,
            _lines(response.headers),
            b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n",
            response.body,
        ]
        cycle.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


def protocol(appends: FastAppends) -> type[HttpToolsProtocol]:
    """The class for uvicorn's `http` setting."""

    class Protocol(HttpToolsProtocol):
        """uvicorn's, but for plain appends. Order on a connection is uvicorn's business, and stays it."""

        _arriving: RequestResponseCycle | None = None  # a plain append whose body is still on its way

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
            if app is not self.app or self.flow.write_paused or not appends.takes(cycle.scope):
                super()._start_asgi_task(cycle, app)
            elif cycle.more_body:
                self._arriving = cycle
            elif not appends.begin(cycle):
                super()._start_asgi_task(cycle, app)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            arriving = self._arriving
            if arriving is not None and not arriving.more_body:
                self._arriving = None
                if not appends.begin(arriving):
                    super()._start_asgi_task(arriving, self.app)

    return Protocol
