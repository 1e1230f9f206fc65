"""The events of `ui-stream`: what records of an answer are to a reader that the AI SDK has made.

Chunks of the SDK's own format are told as they were spelled. Those of any other are folded, shown in the model that the
SDK's messages have, and told as what that has grown by (`consumer.fold.projection`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from broker.http import sse
from consumer.fold import Fold
from consumer.fold.projection import ui_message
from consumer.fold.projection.growth import Growth
from consumer.plain import JSONObject, decode, encode
from consumer.wire import ENDED, RecordType, Status

FORMAT: Final = "ai-sdk-ui-message-stream"
"""The format whose chunks are told as they are."""
DONE: Final = b"data: [DONE]\n\n"
_GENERATION: Final = b'{"type":"generation",'


class _ChunkValue(msgspec.Struct, rename="camel", gc=False):
    message_id: str
    chunk: msgspec.Raw


class _ChunkRecord(msgspec.Struct, tag_field="type", tag=RecordType.CHUNK.value, gc=False):
    """The one record that there are many of, its chunk as its writer spelled it."""

    value: _ChunkValue


class _GenerationValue(msgspec.Struct, rename="camel", gc=False):
    message_id: str
    lane: str
    format: str
    status: str
    continues: str | None = None
    reason: str | None = None
    error: Any = None


class _Headers(msgspec.Struct, gc=False):
    operation: str


class GenerationRecord(msgspec.Struct, tag_field="type", tag=RecordType.GENERATION.value, gc=False):
    """A record of a generation, as far as it matters here."""

    key: str
    value: _GenerationValue
    headers: _Headers


_chunk_record: Final = msgspec.json.Decoder(_ChunkRecord).decode


class Answer(msgspec.Struct, frozen=True):
    """What one reader is told: the message that generation `generation_id` writes, from position `start` on."""

    path: str
    incarnation: int
    start: int
    generation_id: str
    message_id: str
    format: str


def frame_of(answer: Answer, found: Sequence[bytes], *, begun: bool) -> bytes:
    """The events that these records are to a reader who has been told something before, or nothing yet."""
    events: list[bytes] = []
    for record in found:
        chunk = _chunk_in(record, answer.message_id)
        if chunk is not None:
            start = _start_chunk(chunk, answer.message_id)
            if start is None and not begun:
                events.append(_start(answer))
            events.append(sse.message_frame(chunk if start is None else start))
            begun = True
        elif (ended := _end_in(record, answer.generation_id)) is not None:
            return b"".join([*events, b"" if begun else _start(answer), _ending(ended), DONE])
    return b"".join(events)


class Conversion:
    """A running answer in another format, for all who read it now.

    It goes on page by page, whoever comes first. The frames so far are kept for those who come later, until the last
    reader has left.
    """

    def __init__(self, answer: Answer) -> None:
        self.readers = 0
        self.lock = asyncio.Lock()
        """Held by the reader that goes on."""
        self.frames: dict[int, tuple[bytes, int]] = {}
        """By the position that they begin at: each with the position behind it."""
        self._answer = answer
        self._fold = Fold.start(answer.format)
        self._growth = Growth()
        self._begun = False

    def take(self, start: int, end: int, found: Sequence[bytes]) -> None:
        """Go on with the records [start, end), which follow those of the last call."""
        answer, ended = self._answer, None
        for record in found:
            chunk = _chunk_in(record, answer.message_id)
            if chunk is not None:
                self._fold.add(decode(chunk))
            elif (ended := _end_in(record, answer.generation_id)) is not None:
                break
        parts = ui_message(answer.format, self._fold.message, ended=ended is not None)["parts"]
        grown = self._growth.chunks(parts if isinstance(parts, list) else [], ended=ended is not None)
        events = [_event(chunk) for chunk in grown]
        if ended is not None:
            events += [_ending(ended), DONE]
        if events and not self._begun:
            self._begun = True
            events.insert(0, _start(answer))
        self.frames[start] = b"".join(events), end

    def frames_from(self, position: int, bytes_max: int) -> tuple[bytes, int]:
        """The frames so far from `position` on, up to about so many bytes, and the position behind them."""
        told: list[bytes] = []
        while position in self.frames and bytes_max > 0:
            frame, position = self.frames[position]
            told.append(frame)
            bytes_max -= len(frame)
        return b"".join(told), position


def gone_frame(answer: Answer, *, begun: bool) -> bytes:
    """The last events of an answer that went with its session."""
    return (b"" if begun else _start(answer)) + _event({"type": "abort", "reason": "the session is gone"}) + DONE


def _start(answer: Answer) -> bytes:
    return _event({"type": "start", "messageId": answer.message_id})


def _start_chunk(chunk: bytes, message_id: str) -> bytes | None:
    """A writer's own `start`, under the session's message id; None for any other chunk.

    Under an id of the writer's, a page that also reads `GET …/messages` would show one answer twice.
    """
    if b'"start"' not in chunk:
        return None
    start = decode(chunk)
    if not isinstance(start, dict) or start.get("type") != "start":
        return None
    return encode({**start, "messageId": message_id})


def _ending(ended: _GenerationValue) -> bytes:
    """What the client is told of the end of a generation, besides that it is over."""
    reason = ended.reason
    if ended.status == Status.COMPLETE:
        return b""
    if ended.status == Status.ABORTED:
        return _event({"type": "abort", "reason": reason} if reason else {"type": "abort"})
    match ended.error:
        case {"message": str(text)} | str(text):
            return _event({"type": "error", "errorText": text})
    return _event({"type": "error", "errorText": f"the answer failed: {reason}" if reason else "the answer failed"})


def _event(chunk: JSONObject) -> bytes:
    return sse.message_frame(encode(chunk))


# -- records -----------------------------------------------------------------------------------------------------


def _chunk_in(record: bytes, message_id: str) -> bytes | None:
    """The chunk that the record adds to a message; None when it adds none to this one."""
    try:
        value = _chunk_record(record).value
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeError):  # half a surrogate pair in it, which `decode` knows to keep
        match decode(record):
            case {"type": RecordType.CHUNK, "value": {"messageId": str(told), "chunk": chunk}} if told == message_id:
                return encode(chunk)
        return None
    return bytes(value.chunk) if value.message_id == message_id else None


def _generation_in(record: bytes) -> GenerationRecord | None:
    """A record of a generation, decoded; None for any other."""
    return msgspec.convert(decode(record), GenerationRecord) if record.startswith(_GENERATION) else None


def opening_in(record: bytes) -> GenerationRecord | None:
    """The record that opened a generation, decoded; None for any other."""
    told = _generation_in(record)
    return told if told is not None and told.headers.operation == "insert" else None


def _end_in(record: bytes, generation_id: str) -> _GenerationValue | None:
    """How the generation ended, if this record says so."""
    told = _generation_in(record)
    ended = told is not None and told.key == generation_id and told.value.status in ENDED
    return told.value if told is not None and ended else None
