"""Uploads without a turn of a task for each of their parts: what our own connections offer beyond ASGI.

An upload is an ASGI application like any other, with a task that reads and one that writes. While all goes well these
do the same again and again: a token comes in, an ack goes out. Where the server is ours, its connection then hands a
part straight to whoever `take`s it, and writes what it is given. Whatever is out of the ordinary is declined, by either
side, and goes the usual way: so what is decided, and in which order, is the same on both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

from broker.http.request import Scope

EXTENSION: Final = "streamfold.direct"
"""Where an ASGI scope has it, among its extensions."""
_BYTES_IN_ONE_BYTE_MAX: Final = 125
_BYTES_IN_TWO_BYTES_MAX: Final = 65_535


class Direct(ABC):
    """The short way through one connection, for as long as one upload goes on."""

    take: Callable[[bytes], bool] | None = None
    """Gets each part that comes while nothing else waits to be read; False: it has not been taken."""

    @abstractmethod
    def write(self, data: bytes) -> bool:
        """Send a line or a message; False: it is not for now, and nothing has been sent."""


class DirectBody(Direct):
    """The body of an HTTP request, and of its answer, which has begun and is chunked."""

    def __init__(self, protocol: HttpToolsProtocol, cycle: RequestResponseCycle) -> None:
        self._flow = protocol.flow
        self._transport = protocol.transport
        self._cycle = cycle

    def takes(self, body: bytes) -> bool:
        """For the connection: whether a part is dealt with."""
        cycle = self._cycle
        return self.take is not None and not cycle.body and not cycle.response_complete and self.take(body)

    def write(self, data: bytes) -> bool:
        if self._flow.write_paused or self._cycle.response_complete or self._transport.is_closing():
            return False
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


class DirectSocket(Direct):
    """The text messages of a WebSocket."""

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        self._protocol = protocol

    def takes(self, message: bytes) -> bool:
        """For the connection: whether a message, which need not be UTF-8, is dealt with."""
        return self.take is not None and self._protocol.queue.empty() and self.take(message)

    def write(self, data: bytes) -> bool:
        protocol = self._protocol
        if not protocol.writable.is_set() or protocol.close_sent or protocol.transport.is_closing():
            return False
        protocol.transport.write(text_frame(data))
        return True


def text_frame(data: bytes) -> bytes:
    """A message as a server sends it: one frame, not masked (RFC 6455, 5.2)."""
    if len(data) <= _BYTES_IN_ONE_BYTE_MAX:
        return b"\x81%c%b" % (len(data), data)
    if len(data) <= _BYTES_IN_TWO_BYTES_MAX:
        return b"\x81\x7e%b%b" % (len(data).to_bytes(2, "big"), data)
    return Frame(Opcode.TEXT, data).serialize(mask=False)


class UploadSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, with the short way."""

    _direct: DirectSocket | None = None

    def handle_connect(self, event: Request) -> None:
        """Offer it to the application, whose task has yet to begin."""
        super().handle_connect(event)
        if not self.close_sent:
            self._direct = DirectSocket(self)
            scope: Scope = self.scope  # type: ignore[assignment]  # of ASGI's extensions uvicorn names those that it has
            scope["extensions"][EXTENSION] = self._direct

    def send_receive_event_to_app(self) -> None:
        """A message has come."""
        if self._direct is None or self.curr_msg_data_type != "text" or self.close_sent or not self._taken():
            super().send_receive_event_to_app()
        else:
            self.frames = []

    def _taken(self) -> bool:
        assert self._direct is not None
        return len(self.frames) == 1 and self._direct.takes(bytes(self.frames[0]))


def direct_of(scope: Scope) -> Direct | None:
    """The short way through an HTTP connection, where there is one."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, DirectBody) else None


def direct_socket_of(scope: Scope) -> Direct | None:
    """The same of a WebSocket."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, DirectSocket) else None
