"""Forks of sessions: what to propose, and what a child inherits besides records. Pure, as `forks` is for streams.

A child begins with its source's records, by reference. What has taken an id before the fork position is read off these
records, which never change, so that it stays taken in the child.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from broker import limits
from broker.core.entry import (
    Entry,
    ForkRefOptions,
    InheritedGeneration,
    InheritedMessage,
    Kind,
    SessionForkOptions,
)
from broker.core.events import time_ms_of
from broker.core.fork import lineage_of
from broker.core.offset import START_TOKEN, InvalidOffset
from broker.core.outcome import Outcome
from broker.core.state import Session, Stream
from broker.http.forks import entry_for
from broker.http.problems import BadRequest
from broker.http.request import Request
from broker.http.session_fields import fields, message_digest, optional_object, require_json, short_text
from broker.http.session_routes import Target, require_id
from consumer.plain import JSONObject, decode, encode
from consumer.wire import ENDED, OFFSET_START, SESSION_PATH_PREFIX, Code, RecordType

_replace = msgspec.structs.replace


class Wanted(msgspec.Struct, frozen=True):
    """What a request says of the fork."""

    child_id: str
    message_id: str = ""
    offset: str = ""
    metadata: bytes | None = None
    metadata_digest: bytes = b""

    @property
    def path(self) -> str:
        """The path of the child's stream."""
        return SESSION_PATH_PREFIX + self.child_id

    @property
    def selector(self) -> str:
        """Equal for requests that name the same fork position in the same way."""
        return f"message {self.message_id}" if self.message_id else f"offset {self.offset}" if self.offset else ""


def wanted_of(request: Request, target: Target, body: bytes) -> Wanted:
    """What the request says. Raises BadRequest."""
    require_json(request.headers)
    told = fields(body, {"sessionId", "messageId", "offset", "metadata"})
    wanted = Wanted(
        short_text(told, "sessionId"),
        short_text(told, "messageId"),
        short_text(told, "offset"),
        optional_object(told, "metadata") if told.get("metadata") is not None else None,
        message_digest(told["metadata"]) if told.get("metadata") is not None else b"",
    )
    require_id(wanted.child_id, "sessionId", Code.INVALID_BODY)
    if wanted.child_id == target.session_id:
        raise BadRequest(Code.INVALID_BODY, "sessionId is that of the fork, not of its source")
    if wanted.message_id and wanted.offset:
        raise BadRequest(Code.INVALID_BODY, "a fork is at a message or at an offset")
    return wanted


def position_of(wanted: Wanted, stream: Stream) -> int:
    """The fork position, unless it is at a message. Raises BadRequest."""
    if not wanted.offset:
        return stream.tail
    try:
        position = stream.position(START_TOKEN if wanted.offset == OFFSET_START else wanted.offset)
    except InvalidOffset:
        raise BadRequest(Code.INVALID_OFFSET, "not an offset of this broker") from None
    if position is None:
        raise BadRequest(Code.OFFSET_GONE, "the session was reset since")
    if position > stream.tail:
        raise BadRequest(Code.INVALID_OFFSET, "beyond the end of the session")
    return position


def confirm_of(request: Request, target: Target, wanted: Wanted) -> Entry:
    """The entry that confirms, or refuses, a fork whose id is taken."""
    options = SessionForkOptions(target.path, 0, (), 0, wanted.selector)
    return entry_for(Kind.SESSION_FORK, wanted.path, request, options)


def ref_of(request: Request, target: Target, wanted: Wanted, offset: str, now_ms: int) -> Entry:
    """The entry that asks the source."""
    options = ForkRefOptions(wanted.path, now_ms + limits.FORK_MS_MAX, offset, forks_max=limits.FORKS_MAX)
    return entry_for(Kind.FORK_REF, target.path, request, options)


def fork_of(
    request: Request, wanted: Wanted, ref: Entry, source: Stream, session: Session, position: int, heritage: Heritage
) -> Entry:
    """The entry that makes the fork, now that the source has agreed to `ref`. Metadata left open is the source's."""
    inherits = wanted.metadata is None
    options = SessionForkOptions(
        ref.path,
        source.incarnation,
        lineage_of(source, ref.path, position),
        msgspec.msgpack.decode(ref.options, type=ForkRefOptions).deadline_ms,
        wanted.selector,
        tuple(heritage.messages.values()),
        tuple(heritage.generations.values()),
        session.metadata if wanted.metadata is None else wanted.metadata,
        session.metadata_digest if inherits else wanted.metadata_digest,
    )
    return entry_for(Kind.SESSION_FORK, wanted.path, request, options, nonce=ref.nonce)


def source_refusal(outcome: Outcome) -> Outcome:
    """Why the source did not agree, as sessions say it."""
    match outcome.code:
        case Code.STREAM_NOT_FOUND | Code.FORK_SOURCE_GONE:
            return _replace(outcome, code=Code.SESSION_NOT_FOUND, detail="")
        case Code.INVALID_OFFSET:  # it was one of the source when it was looked up
            return _replace(outcome, code=Code.OFFSET_GONE, detail="the session was reset since")
    return outcome


# -- what is inherited -------------------------------------------------------------------------------------------


class _Head(msgspec.Struct):
    """As much of a record as all have."""

    type: str
    key: str


_head: Final = msgspec.json.Decoder(_Head).decode
_TAKES_AN_ID: Final = frozenset({RecordType.MESSAGE.value, RecordType.GENERATION.value})


class Heritage:
    """The messages and generations of a session as its records from the start tell them."""

    def __init__(self) -> None:
        self.messages: dict[str, InheritedMessage] = {}
        self.generations: dict[str, InheritedGeneration] = {}
        self._position = 0
        self._ends: dict[str, int | None] = {}  # by message id: behind its last record, None while it is being written

    def add(self, record: bytes) -> None:
        """Take the next record. Raises BadRequest (FORK_TOO_LARGE) for one more than an entry can carry."""
        self._position += 1
        try:
            head = _head(record)
        except msgspec.DecodeError:  # half a surrogate pair in it, which `decode` knows to keep
            head = msgspec.convert(decode(record), _Head)
        if head.type == RecordType.CHUNK:
            self._count_chunk(head.key.rpartition(":")[0])
        elif head.type in _TAKES_AN_ID:
            told: Any = decode(record)
            take = self._take_message if head.type == RecordType.MESSAGE else self._take_generation
            take(head.key, told["value"])
            if len(self.messages) + len(self.generations) > limits.FORK_IDS_MAX:
                raise BadRequest(Code.FORK_TOO_LARGE, f"more than {limits.FORK_IDS_MAX} messages and generations")

    def end_of(self, message_id: str) -> int | None:
        """The position behind a message; for one that is being written, behind everything."""
        if message_id not in self._ends:
            return None
        return self._ends[message_id] or self._position

    def _count_chunk(self, generation_id: str) -> None:
        generation = self.generations.get(generation_id)
        if generation is not None:
            self.generations[generation_id] = _replace(generation, chunks=generation.chunks + 1)

    def _take_message(self, message_id: str, value: JSONObject) -> None:
        self.messages[message_id] = InheritedMessage(message_id, self._position, message_digest(value))
        self._ends[message_id] = self._position

    def _take_generation(self, generation_id: str, value: Any) -> None:
        known = self.generations.get(generation_id)
        generation = _generation(generation_id, value, 0 if known is None else known.chunks)
        self.generations[generation_id] = generation
        if known is None and generation.continues in self.generations:
            before = self.generations[generation.continues]
            self.generations[before.generation_id] = _replace(before, continued_by=generation_id)
        elif known is None:
            taken = InheritedMessage(generation.message_id, generation_id=generation_id)
            self.messages[generation.message_id] = taken
        else:
            self.generations[generation_id] = _replace(generation, continued_by=known.continued_by)
        self._ends[generation.message_id] = self._position if generation.status in ENDED else None


def _generation(generation_id: str, value: dict[str, Any], chunks: int) -> InheritedGeneration:
    return InheritedGeneration(
        generation_id,
        value["messageId"],
        value["lane"],
        value["fence"],
        value["format"],
        value["role"],
        value["status"],
        chunks,
        time_ms_of(value["createdAt"]),
        time_ms_of(value["endedAt"]) if "endedAt" in value else 0,
        value.get("actorId", ""),
        value.get("reason", ""),
        _encoded(value, "error"),
        _encoded(value, "usage"),
        _encoded(value, "metadata"),
        value.get("continues", ""),
    )


def _encoded(value: dict[str, Any], name: str) -> bytes:
    return encode(value[name]) if name in value else b""
