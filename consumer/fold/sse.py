"""Server-sent events out of bytes as they arrive (WHATWG HTML, section 9.2.6 "Interpreting an event stream").

The event stream client in our dependencies reads whole HTTP responses; its line and event decoders are private, hand
out events without data and flush a last line that was cut. So here is the decoder alone, without a socket.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from typing import Final, NamedTuple

EVENT_CHARS_MAX: Final = 32 * 1024 * 1024
"""How large one event may become while it arrives. A whole message with its files can be one event; a peer that
never ends a line must not fill our memory."""

_LINE_END: Final = re.compile(r"\r\n|\r(?!\Z)|\n")
"""A CR that is the last thing we have may be half of a CRLF, so it is no line end yet. The AI SDK's parser never
takes it as one, so an event that ends with the stream's last CR is dropped there, and here."""


class SSEEvent(NamedTuple):
    """One event that was complete. `data` has its lines joined by LF."""

    event: str
    """`message` unless the peer named it."""
    data: str
    event_id: str | None
    """Of an `id:` line in this event; None if it had none. Keeping the last one is up to the reader."""


class SSEEventTooLong(ValueError):
    """An event grew beyond EVENT_CHARS_MAX. The decoder has dropped it and takes nothing more."""


class SSEDecoder:
    """Put bytes in with `receive`, cut anywhere; take events out with `next_event` until it returns None.

    LF, CR and CRLF end a line, a byte order mark at the start is skipped, bytes that are no UTF-8 become U+FFFD. An
    event without `data:` is none, and one that its blank line has not ended yet is not handed out, however the stream
    ends. Comments and `retry:` are passed over.
    """

    def __init__(self, event_chars_max: int = EVENT_CHARS_MAX) -> None:
        self._event_chars_max = event_chars_max
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []  # pieces of a line that has not ended
        self._line_chars = 0
        self._name = ""
        self._data: list[str] = []
        self._data_chars = 0
        self._event_id: str | None = None
        self._ready: deque[SSEEvent] = deque()
        self._too_long = False

    def receive(self, data: bytes) -> None:
        """Take what has arrived. Never raises."""
        text = self._decoder.decode(data)
        if self._too_long or not text:
            return
        self._line.append(text)
        self._line_chars += len(text)
        if "\n" in text or "\r" in text:
            *lines, rest = _LINE_END.split("".join(self._line))
            self._line, self._line_chars = [rest], len(rest)
            for line in lines:
                self._take(line)
        if self._line_chars + self._data_chars > self._event_chars_max:
            self._too_long = True
            self._line, self._data = [], []

    def next_event(self) -> SSEEvent | None:
        """The next complete event, or None if more bytes are needed.

        Raises SSEEventTooLong once all events before the one that is too long were handed out.
        """
        if self._ready:
            return self._ready.popleft()
        if self._too_long:
            raise SSEEventTooLong(f"an event is longer than {self._event_chars_max} characters")
        return None

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            self._dispatch()
        elif field == "data":
            self._data.append(value)
            self._data_chars += len(value) + 1
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._event_id = value

    def _dispatch(self) -> None:
        if self._data:
            self._ready.append(SSEEvent(self._name or "message", "\n".join(self._data), self._event_id))
        self._name, self._data, self._data_chars, self._event_id = "", [], 0, None
