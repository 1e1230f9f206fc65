"""Batches: what a reader hands out, and how it is read from a page or from the events of a live connection. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import msgspec

from consumer.answer import is_true, media_type
from consumer.errors import BadAnswer
from consumer.plain import NotJSON, decode
from consumer.wire import (
    JSON,
    STREAM_CLOSED,
    STREAM_CURSOR,
    STREAM_NEXT_OFFSET,
    STREAM_SSE_DATA_ENCODING,
    STREAM_UP_TO_DATE,
)

__all__ = ["Batch", "Events", "Form", "is_text", "page"]

_DATA: Final = "data"
_CONTROL: Final = "control"


@dataclass(frozen=True, slots=True)
class Batch:
    """What lies between two offsets of a stream.

    `records` are decoded JSON, or for a byte stream the bytes; they may be empty. Storing `next_offset` together with
    what was made of the records is what makes a restart exactly once.
    """

    records: list[Any] | bytes
    next_offset: str
    """Where the next batch begins: an opaque token."""
    up_to_date: bool
    """Whether the stream held no more when the broker answered."""
    closed: bool
    """Whether the stream ends here for ever."""
    cursor: str | None = None
    """What the next request has to echo, so that caches can tell it apart (PROTOCOL.md 10.1). A reader does."""


class _Control(msgspec.Struct, rename="camel"):
    """The event behind each data event (PROTOCOL.md 5.8)."""

    stream_next_offset: str
    stream_cursor: str | None = None
    up_to_date: bool = False
    stream_closed: bool = False


class Form(Enum):
    """How the data of live events carries what the stream holds (PROTOCOL.md 5.8)."""

    JSON = auto()  # an array of records
    TEXT = auto()  # as it is, but every line end has become LF
    BASE64 = auto()  # the bytes of any other type

    @classmethod
    def of(cls, content_type: str, headers: Mapping[str, str]) -> Form:
        """What the head of a live answer announces. Raises BadAnswer for bytes that would come as if they were text."""
        encoding = headers.get(STREAM_SSE_DATA_ENCODING)
        if encoding is not None and encoding.lower() != "base64":
            raise BadAnswer(f"events in an unknown encoding: {encoding}")
        if encoding is not None:
            return cls.BASE64
        if media_type(content_type) == JSON:
            return cls.JSON
        if is_text(content_type):
            return cls.TEXT
        raise BadAnswer(f"the events of a {content_type or 'byte'} stream are not in base64")


def is_text(content_type: str) -> bool:
    return media_type(content_type).startswith("text/")


def page(headers: Mapping[str, str], body: bytes) -> Batch:
    """The batch of a catch-up or long-poll answer (PROTOCOL.md 5.6, 5.7); the names of `headers` in any case.

    Raises BadAnswer if it is none.
    """
    next_offset = headers.get(STREAM_NEXT_OFFSET)
    if not next_offset:
        raise BadAnswer(f"the answer has no {STREAM_NEXT_OFFSET}; is this URL a stream?")
    closed = is_true(headers.get(STREAM_CLOSED))
    return Batch(
        records=_records(body) if media_type(headers.get("content-type", "")) == JSON else body,
        next_offset=next_offset,
        up_to_date=closed or is_true(headers.get(STREAM_UP_TO_DATE)),
        closed=closed,
        cursor=headers.get(STREAM_CURSOR),
    )


class Events:
    """Makes batches of the events of one live connection (PROTOCOL.md 5.8).

    Data counts only when its control event has come: a connection cut between the two yields nothing, and the next
    one, which begins at the offset before, brings the data again.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._data: list[str] = []

    def take(self, event: str, data: str) -> Batch | None:
        """The batch that this event completes, if it does; without records if no data came before it.

        Events of other names are passed over. Raises BadAnswer for what breaks the protocol.
        """
        if event == _DATA:
            self._data.append(data)
            return None
        if event != _CONTROL:
            return None
        control = _control(data)
        return Batch(
            records=self._records(),
            next_offset=control.stream_next_offset,
            up_to_date=control.up_to_date or control.stream_closed,
            closed=control.stream_closed,
            cursor=control.stream_cursor,
        )

    def _records(self) -> list[Any] | bytes:
        texts, self._data = self._data, []
        if self._form is Form.JSON:
            return [record for text in texts for record in _records(text)]
        if self._form is Form.TEXT:
            return "".join(texts).encode()
        return b"".join(_bytes_of_base64(text) for text in texts)


def _control(data: str) -> _Control:
    try:
        return msgspec.json.decode(data, type=_Control)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadAnswer(f"not a control event: {error}") from error


def _records(text: bytes | str) -> list[Any]:
    if not text:  # 204, or the empty body that section 5.6 allows at the tail
        return []
    try:
        records = decode(text)
    except NotJSON as error:
        raise BadAnswer(f"a JSON stream's data is no JSON: {error}") from error
    if not isinstance(records, list):
        raise BadAnswer("a JSON stream's data is not an array")
    return records


def _bytes_of_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"the data is no base64: {error}") from error
