"""A session as a file, to be kept, compared and brought to another broker; and the rules of what such a file is.

NDJSON. The first line says what it is, each line that follows is a record of the session's log as it is spelled there,
the last line counts them and has the SHA-256 of all before it, so that a file which was cut is no file:

    {"streamfold":"session","version":1,"sessionId":…,"createdAt":…,"metadata":…}
    {"type":"generation","key":…,"value":…,"headers":…}
    {"records":1,"sha256":…}

Carried are the records with all that they say (times, fences, txids, ends), when the session was created and its
metadata. Not carried is what belongs to one broker: offsets, incarnations, leases, the seqs of batches, the time of the
last activity. A line break between the tokens of a record becomes a blank; nothing else changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from consumer.plain import DEPTH_MAX, JSON, JSONObject, NotJSON, decode, encode, nests_within
from consumer.wire import ENDED, SESSION_PATH_PREFIX, RecordType, Status

if TYPE_CHECKING:
    from consumer.reader import Reader

__all__ = ["ArchiveReader", "BadArchive", "BadRecord", "Header", "LogCheck", "export", "is_time"]

_ID: Final = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_TOLD_CHARS_MAX: Final = 300
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")

_T = TypeVar("_T")
Id = Annotated[str, msgspec.Meta(pattern=rf"\A{_ID.pattern}\Z")]


class BadRecord(ValueError):
    """The record is none that a broker writes, or not after those before it."""

    def __init__(self, text: str) -> None:
        # What it quotes may hold half a surrogate pair, which can be told nobody.
        super().__init__(text[:_TOLD_CHARS_MAX].encode(errors="replace").decode())


class BadArchive(ValueError):
    """The file is no session, or not a whole one. The text begins with the number of the line."""


class Header(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The first line."""

    streamfold: Literal["session"]
    version: Literal[1]
    session_id: Id
    created_at: str
    metadata: dict[str, Any] | None = None


class _Trailer(msgspec.Struct, forbid_unknown_fields=True):
    records: int
    sha256: str


# -- what a log is -----------------------------------------------------------------------------------------------------


class _Headers(msgspec.Struct, forbid_unknown_fields=True):
    operation: Literal["insert", "update", "upsert"]
    txid: Id | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    type: RecordType
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    value: dict[str, Any]
    headers: _Headers


class _Generation(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    message_id: Id
    lane: Id
    fence: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    role: Id
    format: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    status: Status
    created_at: str
    actor_id: Id | UnsetType = UNSET
    continues: Id | UnsetType = UNSET
    reason: Annotated[str, msgspec.Meta(max_length=256)] | UnsetType = UNSET
    error: Any = UNSET
    usage: dict[str, Any] | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    ended_at: str | UnsetType = UNSET


class _Running:
    """A generation as far as the log has it."""

    __slots__ = ("chunks", "is_open", "message_id")

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.chunks = 0
        self.is_open = True


class LogCheck:
    """Whether records are a session's log, one after the other. Remembers ids, not contents."""

    def __init__(self) -> None:
        self._generations: dict[str, _Running] = {}
        self._written_by: dict[str, str] = {}  # by message id: its newest generation, "" for a whole message

    def add(self, text: bytes) -> None:
        """Take the next record. Raises BadRecord, and is as before then."""
        try:
            decoded = decode(text)
            if not nests_within(decoded, DEPTH_MAX):
                raise BadRecord(f"it nests more than {DEPTH_MAX} deep")
            record = msgspec.convert(decoded, _Record)
            self._take(record)
        except (NotJSON, msgspec.ValidationError) as error:
            raise BadRecord(str(error)) from error

    def require_ended(self) -> None:
        """Raise BadRecord while a generation runs: nobody could end it but its own broker."""
        running = next((known for known, each in self._generations.items() if each.is_open), None)
        if running is not None:
            raise BadRecord(f"generation {running!r} has not ended")

    def _take(self, record: _Record) -> None:
        match record.type:
            case RecordType.CHUNK:
                self._take_chunk(record)
            case RecordType.GENERATION:
                self._take_generation(record)
            case RecordType.MESSAGE:
                self._take_message(record)
            case RecordType.STOP if record.key not in self._generations:
                raise BadRecord(f"a stop of generation {record.key!r}, which is not there")

    def _take_chunk(self, record: _Record) -> None:
        generation_id, _, number = record.key.rpartition(":")
        generation = self._generations.get(generation_id)
        if generation is None or not generation.is_open:
            raise BadRecord(f"a chunk of generation {generation_id!r}, which is not open")
        if number != str(generation.chunks):
            raise BadRecord(f"chunk {record.key!r} where '{generation_id}:{generation.chunks}' is the next")
        if record.value.keys() != {"messageId", "chunk"} or record.value["messageId"] != generation.message_id:
            raise BadRecord(f"chunk {record.key!r} has a messageId and a chunk, of message {generation.message_id}")
        generation.chunks += 1

    def _take_generation(self, record: _Record) -> None:
        _require_id(record.key)
        told = msgspec.convert(record.value, _Generation)
        _require_id(told.message_id)
        _require_time(told.created_at)
        if told.ended_at is not UNSET:
            _require_time(told.ended_at)
        known = self._generations.get(record.key)
        if known is None:
            self._open(record.key, told)
            return
        if not known.is_open or known.message_id != told.message_id:
            raise BadRecord(f"generation {record.key!r} has ended, or writes another message")
        if told.status in ENDED and told.ended_at is UNSET:
            raise BadRecord(f"generation {record.key!r} ends without a time")
        known.is_open = told.status not in ENDED

    def _open(self, generation_id: str, told: _Generation) -> None:
        if told.status in ENDED:
            raise BadRecord(f"generation {generation_id!r} ends before it begins")
        before = self._written_by.get(told.message_id)
        if before is None and told.continues is not UNSET:
            raise BadRecord(f"generation {generation_id!r} continues a message that is not there")
        if before is not None and (told.continues != before or self._generations[before].is_open):
            raise BadRecord(f"message {told.message_id!r} is there already")
        self._generations[generation_id] = _Running(told.message_id)
        self._written_by[told.message_id] = generation_id

    def _take_message(self, record: _Record) -> None:
        _require_id(record.key)
        if record.value.get("id") != record.key or not isinstance(record.value.get("role"), str):
            raise BadRecord(f"message {record.key!r} has this id, and a role")
        before = self._written_by.get(record.key)
        if before or (before is not None and record.headers.operation == "insert"):
            raise BadRecord(f"message {record.key!r} is there already")
        self._written_by[record.key] = ""


def _require_id(text: str) -> None:
    if _ID.fullmatch(text) is None or text in {".", ".."}:
        raise BadRecord(f"an id is 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -, not {text[:50]!r}")


def is_time(text: str) -> bool:
    """Whether it is a time as a broker writes it: in UTC, to the millisecond."""
    try:
        return _TIME.fullmatch(text) is not None and datetime.fromisoformat(text).year > 0
    except ValueError:
        return False


def _require_time(text: str) -> None:
    if not is_time(text):
        raise BadRecord(f"no time in UTC, to the millisecond: {text[:50]!r}")


# -- files -------------------------------------------------------------------------------------------------------------


async def export(reader: Reader, session_id: str) -> AsyncGenerator[bytes, None]:
    """The lines of the file, each with its line break. Holds one page of the log.

    Raises BadArchive if a generation runs, after which the file has no last line; and what `Reader.texts` raises.
    """
    state = await reader.session(session_id)
    header: JSONObject = {"streamfold": "session", "version": 1, "sessionId": session_id}
    line = encode({**header, "createdAt": state["createdAt"], "metadata": state.get("metadata")}) + b"\n"
    check, digest, number = LogCheck(), hashlib.sha256(line), 0
    yield line
    async with aclosing(reader.texts(SESSION_PATH_PREFIX + session_id)) as pages:
        async for page in pages:
            for text in page.records:
                number += 1
                _take(check, number + 1, text)
                line = text.translate(_ONE_LINE) + b"\n"
                digest.update(line)
                yield line
    try:
        check.require_ended()
    except BadRecord as error:
        raise BadArchive(f"the session is being written: {error}") from error
    yield encode({"records": number, "sha256": digest.hexdigest()}) + b"\n"


class ArchiveReader:
    """Reads such a file line by line. Remembers ids, not contents."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.records = 0
        self.is_whole = False
        self._line = 0
        self._check = LogCheck()
        self._digest = hashlib.sha256()

    def add(self, line: bytes) -> bytes | None:
        """The record in the next line, given without its line break; None if it has none. Raises BadArchive."""
        self._line += 1
        if self.is_whole:
            if line.strip():
                raise BadArchive(f"line {self._line}: something follows the last line")
            return None
        if self.header is None:
            self.header = self._converted(line, Header)
            self._require_time(self.header.created_at)
        elif line.startswith(b'{"records":'):
            self._end(self._converted(line, _Trailer))
            return None
        else:
            _take(self._check, self._line, line)
            self.records += 1
        self._digest.update(line + b"\n")
        return line if self._line > 1 else None

    def require_whole(self) -> None:
        """Raise BadArchive unless the last line was the last."""
        if not self.is_whole:
            raise BadArchive(f"line {self._line}: the file ends before its last line")

    def _end(self, trailer: _Trailer) -> None:
        if trailer.records != self.records or trailer.sha256 != self._digest.hexdigest():
            raise BadArchive(f"line {self._line}: what came before is not what was exported")
        try:
            self._check.require_ended()
        except BadRecord as error:
            raise BadArchive(f"line {self._line}: {error}") from error
        self.is_whole = True

    def _converted(self, line: bytes, wanted: type[_T]) -> _T:
        try:
            value: JSON = decode(line)
            return msgspec.convert(value, wanted)
        except (NotJSON, msgspec.ValidationError) as error:
            raise BadArchive(f"line {self._line}: {error}") from error

    def _require_time(self, text: str) -> None:
        try:
            _require_time(text)
        except BadRecord as error:
            raise BadArchive(f"line {self._line}: {error}") from error


def _take(check: LogCheck, line: int, text: bytes) -> None:
    try:
        check.add(text)
    except BadRecord as error:
        raise BadArchive(f"line {line}: {error}") from error
