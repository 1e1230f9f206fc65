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
from websockets.protocol import Protocol as FrameProtocol, State
from websockets.streams import StreamReader

from broker.http.request import Scope

try:
    from websockets.speedups import apply_mask
except ImportError:  # where there is no compiler's work
    from websockets.utils import apply_mask

EXTENSION: Final = "streamfold.direct"
"""Where an ASGI scope has it, among its extensions."""

_TEXT: Final = 0x80 | Opcode.TEXT
_MASKED: Final = 0x80
_SHORT_MAX: Final = 125
_LENGTH_IN_TWO_BYTES: Final = _MASKED | 126
"""How a whole text message of a client begins, and what its second byte says (RFC 6455, 5.2)."""
_BETWEEN_FRAMES: Final = StreamReader.at_eof.__code__


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
    """The text messages of a WebSocket. Whether they are UTF-8 is for whoever takes them to find out."""

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        self._protocol = protocol

    def takes(self, text: bytes) -> bool:
        """For the connection: whether a message is dealt with."""
        return self.take is not None and self._protocol.queue.empty() and self.take(text)

    def write(self, data: bytes) -> bool:
        protocol = self._protocol
        if not protocol.writable.is_set() or protocol.close_sent or protocol.transport.is_closing():
            return False
        protocol.transport.write(Frame(Opcode.TEXT, data).serialize(mask=False))
        return True


class UploadSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, with the short way."""

    _direct: DirectSocket | None = None
    _is_between_frames = False

    def data_received(self, data: bytes) -> None:
        """Take whole messages past the parser, where it waits for the next; anything else is for it."""
        rest = self._untaken(data) if self._is_between_frames else data
        if rest:
            super().data_received(rest)
            self._is_between_frames = self._direct is not None and _is_between_frames(self.conn)

    def _untaken(self, data: bytes) -> bytes:
        """What is left from the first message on that is not taken."""
        at = 0
        while at < len(data):
            begin, end = _masked_text(data, at)
            if not at + 6 <= begin <= end <= len(data) or end - begin > self.config.ws_max_size:
                break
            if self._direct is None or self.close_sent:
                break
            if not self._direct.takes(apply_mask(data[begin:end], data[begin - 4 : begin])):
                break
            at = end
        return data[at:]

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


def _masked_text(data: bytes, at: int) -> tuple[int, int]:
    """Where the text of the message lies whose frame begins at `at`; (0, 0) if it may be anything but a plain one."""
    if len(data) < at + 8 or data[at] != _TEXT:
        return 0, 0
    length = data[at + 1]
    if _MASKED <= length <= _MASKED + _SHORT_MAX:
        return at + 6, at + 6 + length - _MASKED
    if length == _LENGTH_IN_TWO_BYTES:
        return at + 8, at + 8 + int.from_bytes(data[at + 2 : at + 4])
    return 0, 0


def _is_between_frames(connection: FrameProtocol) -> bool:
    """Whether the parser has used up what came, and waits for the first byte of a frame that begins a message.

    It is a generator: what it waits in says where it is.
    """
    if connection.state is not State.OPEN or connection.current_size is not None:
        return False
    waits = connection.parser
    while (inner := getattr(waits, "gi_yieldfrom", None)) is not None:
        waits = inner
    return getattr(waits, "gi_code", None) is _BETWEEN_FRAMES


def direct_of(scope: Scope) -> Direct | None:
    """The short way through an HTTP connection, where there is one."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, DirectBody) else None


def direct_socket_of(scope: Scope) -> Direct | None:
    """The same of a WebSocket."""
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, DirectSocket) else None
