"""The fold of a whole session: its records in, the state of its messages out.

A reader's `SessionView` and the broker's materializer run this same class, so that what a client computes from the
log is what `GET /messages` answers. Pure: no clock, no socket, no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Self

import msgspec

from consumer.plain import DEPTH_MAX, JSON, JSONObject, NotJSON, decode, encode, nests_within
from consumer.turn import Turn, given
from consumer.wire import ENDED, RecordType, Status

_CHUNK_DEPTH_MAX: Final = DEPTH_MAX - 2
"""How deeply a chunk may nest for its record to stay within DEPTH_MAX."""
_FLAT_BYTES_MAX: Final = 2 * _CHUNK_DEPTH_MAX
"""A record that is no longer holds no chunk that nests more deeply: each level costs its two brackets."""
_NUMBER_DIGITS_MAX: Final = 16


class BadSessionState(ValueError):
    """This is not what `SessionFold.dump` returned, or another version wrote it. Fold the log from its start."""


class Forgotten(Exception):
    """What is asked for, or what a record goes on with, was dropped by `forget`: `recall` it, then try again."""


class _ChunkValue(msgspec.Struct, gc=False):
    chunk: Any


class _ChunkRecord(msgspec.Struct, tag_field="type", tag=RecordType.CHUNK.value, gc=False):
    """The one record that there are many of, decoded straight to the two fields that matter here."""

    key: str
    value: _ChunkValue


class _GenerationValue(msgspec.Struct, rename="camel"):
    message_id: str
    lane: str
    role: str
    format: str
    status: Status
    continues: str | None = None


_chunk_decoder: Final = msgspec.json.Decoder(_ChunkRecord)


class SessionFold:
    """The messages of one session, folded from its records in the order of the log.

    `add` takes anything and never raises, but for Forgotten. Records of types that are unknown here are passed over;
    those that no broker wrote are passed over and counted in `malformed`; one that was seen before changes nothing. The
    same records give the same items, also if `dump` and `load`, or `forget` and `recall`, came between them.
    """

    __slots__ = ("_forgotten", "_generations", "_turns", "is_whole", "malformed")

    def __init__(self) -> None:
        self.malformed = 0
        """Records that contradict the record shapes, or the log before them. Not part of the state."""
        self.is_whole = True
        """False once a generation went on with a message of which only the item was known (`of_items`), so that its
        chunks could not be folded: fold the log from its start. Not part of the state."""
        self._turns: dict[str, Turn] = {}  # by message id
        self._generations: dict[str, Turn] = {}  # by generation id, ended ones too: they tell late copies of a chunk
        self._forgotten = 0

    @classmethod
    def of_items(cls, items: Iterable[dict[str, Any]]) -> Self:
        """The fold that has these `items()`, to go on from the offset at which they stood.

        They become part of the state and must not be edited afterwards.
        Raises ValueError if something is no item, or if a generation runs: how to go on with it cannot be told from
        its message alone. Fold the log from its start then.
        """
        folding = cls()
        for item in items:
            message_id = item.get("id")
            turn = Turn(len(folding._turns), str(message_id), item)
            if turn.is_open or not isinstance(message_id, str):
                raise ValueError(f"message {message_id!r} is {item['status']}; only ended ones can be taken over")
            generation_id = item.get("generationId")
            if isinstance(generation_id, str):
                turn.chunks[generation_id] = 0
            folding._put(turn)
        return folding

    # -- folding --------------------------------------------------------------------------------------------------

    def add(self, record: bytes | JSON) -> str | None:
        """Fold the next record: JSON text in UTF-8, or decoded. The id of the message that it changed, if any.

        What is decoded becomes part of the state and must not be edited afterwards. Raises Forgotten, and changes
        nothing, for a record of a message that was forgotten, and for what might be one.
        """
        if not isinstance(record, bytes):
            return self._add_decoded(record)
        try:
            chunk = _chunk_decoder.decode(record)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self._add_text(record)
        if len(record) > _FLAT_BYTES_MAX and not nests_within(chunk.value.chunk, _CHUNK_DEPTH_MAX):
            return self._refuse()
        return self._add_chunk(chunk.key, chunk.value.chunk)

    def _add_text(self, record: bytes) -> str | None:
        """What the fast way refuses: every other record, and chunks with text that only `decode` takes."""
        try:
            decoded = decode(record)
        except NotJSON:
            return self._refuse()
        return self._add_decoded(decoded)

    def _add_decoded(self, record: Any) -> str | None:
        match record:
            case {"type": RecordType.CHUNK, "key": str(key), "value": {"chunk": chunk}}:
                return self._add_chunk(key, chunk) if nests_within(chunk, _CHUNK_DEPTH_MAX) else self._refuse()
            case {"type": RecordType.GENERATION | RecordType.MESSAGE} if not nests_within(record, DEPTH_MAX):
                return self._refuse()
            case {"type": RecordType.GENERATION, "key": str(key), "value": dict(value)}:
                return self._add_generation(key, value)
            case {"type": RecordType.MESSAGE, "key": str(key), "value": dict(value), "headers": dict(headers)}:
                return self._add_message(key, value, headers)
            case {"type": RecordType.CHUNK | RecordType.GENERATION | RecordType.MESSAGE}:
                return self._refuse()
            case {"type": str()} | {"headers": {"control": str()}}:
                return None
        return self._refuse()

    def _refuse(self) -> str | None:
        self.malformed += 1
        return None

    def _add_chunk(self, key: str, chunk: JSON) -> str | None:
        generation_id, _, number = key.rpartition(":")
        turn = self._generations.get(generation_id)
        if turn is None:
            self._require_nothing_forgotten()
            return self._refuse()
        count = turn.chunks[generation_id]
        if not turn.is_open or number != str(count) or turn.facts["generationId"] != generation_id:
            return None if _is_below(number, count) else self._refuse()
        turn.add(generation_id, chunk)
        return turn.message_id

    def _add_generation(self, generation_id: str, value: JSONObject) -> str | None:
        try:
            told = msgspec.convert(value, _GenerationValue)
        except (msgspec.ValidationError, UnicodeError):  # it cannot quote half a surrogate pair
            return self._refuse()
        turn = self._generations.get(generation_id)
        if turn is None:
            turn = self._open(generation_id, told, value)
            if turn is None:
                return self._refuse()
        elif turn.message_id != told.message_id:
            return self._refuse()
        elif not turn.is_open or told.status not in ENDED or turn.facts["generationId"] != generation_id:
            return None
        if told.status in ENDED:
            turn.end(told.status, value)
        return turn.message_id

    def _open(self, generation_id: str, told: _GenerationValue, value: JSONObject) -> Turn | None:
        """The message that a new generation writes: a new one, or the one that it goes on with; None if it cannot."""
        turn = self._turns.get(told.message_id)
        if turn is None and (told.continues or told.status in ENDED):
            self._require_nothing_forgotten()
        if turn is None:
            return self._start(generation_id, told, value)
        if turn.is_open or not told.continues or turn.facts.get("generationId") != told.continues:
            return None
        self.is_whole &= turn.go_on(generation_id, told.lane, value)
        self._generations[generation_id] = turn
        return turn

    def _start(self, generation_id: str, told: _GenerationValue, value: JSONObject) -> Turn:
        facts: JSONObject = {
            "id": told.message_id,
            "role": told.role,
            "status": Status.PENDING.value,
            "generationId": generation_id,
            "lane": told.lane,
            "format": told.format,
            "message": None,
            **given(value, "metadata", "createdAt"),
        }
        turn = Turn(self._next_ordinal, told.message_id, facts)
        turn.begin(generation_id, told.format)
        self._put(turn)
        return turn

    def _add_message(self, message_id: str, value: JSONObject, headers: JSONObject) -> str | None:
        role = value.get("role")
        known = self._turns.get(message_id)
        if known is None and headers.get("operation") != "insert":
            self._require_nothing_forgotten()
        if not isinstance(role, str) or (known is not None and "generationId" in known.facts):
            return self._refuse()
        if known is not None and headers.get("operation") == "insert":
            return None
        ordinal = self._next_ordinal if known is None else known.ordinal
        facts: JSONObject = {
            "id": message_id,
            "role": role,
            "status": Status.COMPLETE.value,
            "message": value,
            **_created_at(headers, known),
        }
        self._put(Turn(ordinal, message_id, facts))
        return message_id

    def _put(self, turn: Turn) -> None:
        self._turns[turn.message_id] = turn
        for generation_id in turn.chunks:
            self._generations[generation_id] = turn

    @property
    def _next_ordinal(self) -> int:
        return len(self._turns) + self._forgotten

    def _require_nothing_forgotten(self) -> None:
        if self._forgotten:
            raise Forgotten

    # -- what it has come to --------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether a generation is open."""
        return any(turn.is_open for turn in self._turns.values())

    def items(self) -> list[dict[str, Any]]:
        """All messages in the order of their first appearance, as `GET /messages` lists them.

        They stay as they are while folding goes on; their values are shared with the state and must not be edited.
        Raises Forgotten unless all are here.
        """
        return [turn.item() for turn in self._in_order()]

    def message_ids(self) -> list[str]:
        """Of all messages, in the order of `items()`. Raises Forgotten unless all are here."""
        return [turn.message_id for turn in self._in_order()]

    def _in_order(self) -> list[Turn]:
        self._require_nothing_forgotten()
        return sorted(self._turns.values(), key=_ordinal)

    def item(self, message_id: str) -> dict[str, Any] | None:
        """One of `items()`; None if there is no such message."""
        turn = self._turns.get(message_id)
        return None if turn is None else turn.item()

    # -- storing, message by message ------------------------------------------------------------------------------

    def ordinal(self, message_id: str) -> int:
        """The place of a message in `items()`, from 0. It never changes. Raises KeyError if there is none."""
        return self._turns[message_id].ordinal

    def dump(self, message_id: str) -> bytes:
        """All that is known of a message, for `load`. Raises KeyError if there is none."""
        return encode(self.state(message_id))

    def state(self, message_id: str) -> JSONObject:
        """What `dump` encodes. It stays as it is while folding goes on: another thread may encode it."""
        return self._turns[message_id].state()

    def load(self, ordinal: int, message_id: str, stored: bytes) -> None:
        """Put back what `ordinal` and `dump` told of a message; all of them, in any order, before the first `add`.

        Raises BadSessionState if they did not tell this; the fold must then not be used.
        """
        try:
            self._put(Turn.restored(ordinal, message_id, decode(stored)))
        except (ValueError, msgspec.ValidationError) as error:
            raise BadSessionState(f"message {message_id!r}: {error}") from error

    def until(self, ordinal: int) -> SessionFold:
        """A fold of its own that has the messages before this ordinal, as they are now.

        Raises Forgotten unless all are here.
        """
        self._require_nothing_forgotten()
        earlier = SessionFold()
        for turn in self._turns.values():
            if turn.ordinal < ordinal:
                state: JSON = turn.state()
                if turn.fold is not None:  # it takes over parts of what it is restored from: they would be shared
                    state = decode(encode(state))
                earlier._put(Turn.restored(turn.ordinal, turn.message_id, state))
        return earlier

    # -- holding less than all ------------------------------------------------------------------------------------

    @property
    def forgotten(self) -> int:
        """How many messages are not here."""
        return self._forgotten

    def is_open(self, message_id: str) -> bool:
        """Whether a generation writes this message. Raises KeyError if it is not here."""
        return self._turns[message_id].is_open

    def forget(self, message_id: str) -> None:
        """Drop a message that has ended. Whoever does so has what `dump` told of it, to `recall` it.

        New messages are folded without it; the broker's rules see to it that they have ids of their own.
        """
        turn = self._turns.pop(message_id)
        for generation_id in turn.chunks:
            del self._generations[generation_id]
        self._forgotten += 1

    def recall(self, whole: SessionFold) -> list[str]:
        """Take back what was forgotten from a fold that has it, and is used up by this; returns the ids.

        Raises BadSessionState if it does not have all of it; this one must then not be used.
        """
        back = [turn for message_id, turn in whole._turns.items() if message_id not in self._turns]
        if len(back) != self._forgotten:
            raise BadSessionState(f"{self._forgotten} messages were forgotten, {len(back)} are there")
        self._forgotten = 0
        for turn in back:
            self._put(turn)
        return [turn.message_id for turn in back]


def _ordinal(turn: Turn) -> int:
    return turn.ordinal


def _is_below(number: str, chunks: int) -> bool:
    """Whether this names one of the chunks so far. Written as the broker writes it: digits without leading zeros."""
    short = len(number) <= _NUMBER_DIGITS_MAX
    return short and number.isascii() and number.isdigit() and int(number) < chunks and str(int(number)) == number


def _created_at(headers: JSONObject, known: Turn | None) -> JSONObject:
    if known is not None:
        return given(known.facts, "createdAt")
    timestamp = headers.get("timestamp")
    return {"createdAt": timestamp} if isinstance(timestamp, str) else {}
