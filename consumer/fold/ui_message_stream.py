"""Chunks out of the bytes of an AI SDK UI message stream response (FOLDS section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

from consumer.fold.partial_json import reaches_prototype
from consumer.fold.sse import EVENT_CHARS_MAX, SSEDecoder, SSEEventTooLong
from consumer.fold.ui_message_chunk import NotAChunk, checked
from consumer.plain import JSON, JSONObject, NotJSON, decode

_DONE: Final = "[DONE]"
_EXCERPT_CHARS: Final = 200

BadStreamCode: TypeAlias = Literal["not-json", "not-a-chunk", "too-long"]


class BadUIMessageStream(ValueError):
    """An event that is no chunk; the reference ends the stream here. All chunks before it have been handed out.

    The peer speaks another protocol or another version: reading it again gives the same.
    """

    def __init__(self, code: BadStreamCode, reason: str, event_data: str) -> None:
        self.code = code
        self.excerpt = event_data[:_EXCERPT_CHARS]
        """The beginning of the event's data."""
        super().__init__(f"{reason}: {self.excerpt!r}" if self.excerpt else reason)


class UIMessageStreamReader:
    """Put bytes in with `receive`, cut anywhere; take chunks out with `next_chunk` until it returns None.

    A `[DONE]` event is passed over wherever it is: the stream ends when its bytes end. What is left then of an event
    without its blank line is no chunk.
    """

    def __init__(self, event_chars_max: int = EVENT_CHARS_MAX) -> None:
        self._events = SSEDecoder(event_chars_max)
        self._failure: BadUIMessageStream | None = None

    def receive(self, data: bytes) -> None:
        """Take what has arrived. Never raises."""
        self._events.receive(data)

    def next_chunk(self) -> JSONObject | None:
        """The next chunk, or None if more bytes are needed. Unknown fields are kept.

        Raises BadUIMessageStream, then and for ever, at the first event that is no chunk.
        """
        if self._failure is not None:
            raise self._failure
        try:
            return self._next_chunk()
        except BadUIMessageStream as failure:
            self._failure = failure
            raise

    def _next_chunk(self) -> JSONObject | None:
        try:
            event = self._events.next_event()
            while event is not None and event.data == _DONE:
                event = self._events.next_event()
        except SSEEventTooLong as error:
            raise BadUIMessageStream("too-long", str(error), "") from error
        return None if event is None else _chunk(event.data)


def read_ui_message_stream(pieces: Iterable[bytes]) -> Iterator[JSONObject]:
    """The chunks in a response body that comes in pieces. Raises BadUIMessageStream after the last good chunk."""
    reader = UIMessageStreamReader()
    for piece in pieces:
        reader.receive(piece)
        while (chunk := reader.next_chunk()) is not None:
            yield chunk


def _chunk(event_data: str) -> JSONObject:
    try:
        return checked(_secure(decode(event_data)))
    except NotJSON as error:
        raise BadUIMessageStream("not-json", str(error), event_data) from error
    except NotAChunk as error:
        raise BadUIMessageStream("not-a-chunk", str(error), event_data) from error


def _secure(value: JSON) -> JSON:
    if reaches_prototype(value):
        raise NotJSON("a key that could reach an object's prototype")
    return value
