"""Events of an event stream, as its bytes come in (WHATWG HTML 9.2). Pure.

sseclient makes an event of its lines. Where one ends is found here, since that library wants to read by itself.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sseclient import SSEClient

from consumer.errors import BadAnswer

__all__ = ["Event", "EventParser"]

_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
"""A line and then an empty one, each ended in one of the three ways that there are."""
_END_BYTES_MAX: Final = 3
"""Of an end whose last byte has not come."""


class Event(NamedTuple):
    """One event."""

    event: str
    data: str
    id: str
    """Of this event, or of the last one that had one."""


class EventParser:
    """Takes a stream in pieces of any size. What has no end yet is held: its owner bounds what it feeds."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._last_id = ""

    def feed(self, piece: bytes) -> list[Event]:
        """The events that end in this piece; one that the stream breaks off in never comes. Raises BadAnswer."""
        rest, begin = self._rest, max(0, len(self._rest) - _END_BYTES_MAX)
        rest += piece
        events: list[Event] = []
        taken = 0
        for end in _END.finditer(rest, begin):
            events += self._parsed(bytes(rest[taken : end.end()]))
            taken = end.end()
        del rest[:taken]
        return events

    def _parsed(self, block: bytes) -> list[Event]:
        """The event of a block; none of a comment."""
        try:
            found = list(SSEClient(iter([block])).events())
        except UnicodeDecodeError as error:
            raise BadAnswer(f"events must be UTF-8: {error}") from error
        for event in found:
            self._last_id = self._last_id if event.id is None else event.id
        return [Event(event.event, event.data, self._last_id) for event in found]
