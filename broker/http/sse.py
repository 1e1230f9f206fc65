"""Server-sent events: frames as bytes (PROTOCOL.md 5.8; the HTML standard, section 9.2).

id: OFFSET          the offset behind the data, so that a browser's own reconnect resumes there
event: data
data:LINE           no space after the colon, unless the line begins with one: a client takes one off

id: OFFSET
event: control
data:{"streamNextOffset":OFFSET,"streamCursor":…,"upToDate":true,"streamClosed":true}
"""

from __future__ import annotations

from base64 import b64encode
from collections import OrderedDict
from typing import Final

from broker.core.state import media_type
from consumer.wire import JSON

KEEP_ALIVE: Final = b": keep-alive\n\n"
LEAVING: Final = b"retry: 1000\n\n"
"""Told before a draining broker ends a connection: come back in a second, to whoever serves then."""

_BASE64_LINE_BYTES: Final = 48 * 1024
"""Bytes in one line of base64: lines stay below what line-based readers take (64 KiB is common), whole groups of three
so that the lines join to one base64 text."""


def is_text(content_type: str) -> bool:
    """Whether data events carry the bytes as they are; all other types are told in base64."""
    media = media_type(content_type)
    return media == JSON or media.startswith("text/")


def data_frame(offset: str, data: bytes, *, text: bool) -> bytes:
    """A data event for `data`, after which a reader stands at `offset`."""
    lines = _lines(data) if text else _base64_lines(data)
    return b"id: %b\nevent: data\n%b\n" % (offset.encode(), b"".join([_line(line) for line in lines]))


def message_frame(data: bytes) -> bytes:
    """An event of the default type, with neither id nor name: `data` is text, told with a space behind the colon."""
    return b"%b\n" % b"".join([b"data: %b\n" % line for line in _lines(data)])


def control_frame(offset: str, cursor: int, *, up_to_date: bool, closed: bool) -> bytes:
    """The control event that follows every data event. A closed stream needs no cursor: nobody comes back."""
    if closed:
        facts = '"upToDate":true,"streamClosed":true'
    else:
        facts = f'"streamCursor":"{cursor}"' + (',"upToDate":true' if up_to_date else "")
    return f'id: {offset}\nevent: control\ndata:{{"streamNextOffset":"{offset}",{facts}}}\n\n'.encode()


def whole_characters(data: bytes) -> int:
    """How many bytes of `data` end with a whole UTF-8 character.

    A byte stream of text may have been appended in pieces that cut a character in two. An event is decoded by itself,
    so the first half waits for the second.
    """
    for back in range(1, min(len(data), 3) + 1):
        byte = data[-back]
        if byte < 0x80:  # noqa: PLR2004 -- ASCII
            break
        if byte >= 0xC0:  # noqa: PLR2004 -- the first byte of a character
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4  # noqa: PLR2004 -- RFC 3629, section 3
            return len(data) - back if needed > back else len(data)
    return len(data)


def _line(line: bytes) -> bytes:
    return b"data: %b\n" % line if line.startswith(b" ") else b"data:%b\n" % line


def _lines(data: bytes) -> list[bytes]:
    """Every line break of the standard ends a line, or data could end its event and begin another."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.split(b"\n")


def _base64_lines(data: bytes) -> list[bytes]:
    return [b64encode(data[at : at + _BASE64_LINE_BYTES]) for at in range(0, len(data), _BASE64_LINE_BYTES)]


class FrameCache:
    """The newest data frames: all readers at a tail want the same one, so it is encoded once. Bounded by bytes.

    A key names records of one life of a stream, (incarnation, start, end), and for whom, if not all are told the same.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames: OrderedDict[tuple[int | str, ...], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int | str, ...]) -> bytes | None:
        """The frame, if it is still here."""
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
        return frame

    def put(self, key: tuple[int | str, ...], frame: bytes) -> None:
        """Keep a frame that `get` did not have."""
        self._frames[key] = frame
        self._bytes += len(frame)
        while self._bytes > self._bytes_max:
            _, oldest = self._frames.popitem(last=False)
            self._bytes -= len(oldest)
