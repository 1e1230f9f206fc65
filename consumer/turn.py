"""One message of a session: what its generations make of it, chunk by chunk, until it has ended. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

import msgspec

from consumer.fold import BadMessage, Fold, UnknownFormat, ui_message
from consumer.plain import JSON, JSONObject
from consumer.wire import ENDED, Status

__all__ = ["Turn", "given", "status_of"]

_OF_THE_RUN: Final = ("metadata", "usage", "model")
"""Where a run tells of itself: its end, or what its format has for that in the message."""
_WITH_RESULT: Final = frozenset({"output-available", "output-error", "output-denied"})
_ENDING_FACTS: Final = ("reason", "error", "usage", "metadata", "endedAt")
_STATUSES: Final = {status.value: status for status in Status}
"""A call of the enum costs ten times as much, and a long session is opened with one for each message."""


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """The form of a state. Another meaning of a field is another version."""

    version: Literal[2]
    facts: dict[str, Any]
    chunks: list[tuple[str, Annotated[int, msgspec.Meta(ge=0)]]]
    fold: dict[str, Any] | None


class Turn:
    """One message of the session as it stands.

    `facts` is its item; while it is open and `fold` is there, the item's message is the fold's. `chunks` counts the
    chunks of each generation that has written it, in their order, folded or not: it is the number that the next chunk
    bears, so a chunk seen before is told from it, and a hole is never folded over. Only the last of them may be open.

    The fold outlives an end that is not complete: another generation may go on from there, amid a text or a tool call.
    What is complete is continued as its format continues a message.
    """

    __slots__ = ("chunks", "facts", "fold", "is_open", "message_id", "ordinal")

    def __init__(self, ordinal: int, message_id: str, facts: JSONObject) -> None:
        self.ordinal = ordinal
        self.message_id = message_id
        self.facts = facts
        self.is_open = status_of(facts) not in ENDED
        self.fold: Fold | None = None
        self.chunks: dict[str, int] = {}

    @classmethod
    def restored(cls, ordinal: int, message_id: str, state: JSON) -> Self:
        """What `state` told. Raises ValueError or msgspec.ValidationError if it did not tell this."""
        told = msgspec.convert(state, _Stored)
        turn = cls(ordinal, message_id, told.facts)
        turn.chunks = dict(told.chunks)
        turn.fold = None if told.fold is None else Fold.restore(told.fold)
        return turn

    def begin(self, generation_id: str, chunk_format: str) -> None:
        """The first generation that writes it."""
        self.chunks[generation_id] = 0
        try:
            self.fold = Fold.start(chunk_format)
        except UnknownFormat:
            self.fold = None  # its chunks are counted, its status is told, its message stays null

    def go_on(self, generation_id: str, lane: str, value: JSONObject) -> bool:
        """Another generation goes on with what ended. False if how to do so is not known here."""
        complete = self.facts["status"] == Status.COMPLETE.value
        if self.fold is None and complete:
            self.fold = _continued(self.facts)
        known = complete or self.fold is not None or self.facts["message"] is None
        kept = {name: fact for name, fact in self.facts.items() if name not in (*_ENDING_FACTS, "missing")}
        told = {"status": Status.STREAMING.value, "generationId": generation_id, "lane": lane}
        self.facts = {**kept, **told, **given(value, "metadata")}
        self.chunks[generation_id] = 0
        self.is_open = True
        return known

    def add(self, generation_id: str, chunk: JSON) -> None:
        self.chunks[generation_id] += 1
        self.facts["status"] = Status.STREAMING.value
        if self.fold is not None:
            self.fold.add(chunk)

    def end(self, status: Status, value: JSONObject) -> None:
        message = self.facts["message"] if self.fold is None else self.fold.message
        if self.fold is not None and status is Status.COMPLETE:
            message = self.fold.final() or message
            self.fold = None
        self.facts = {**self.facts, "message": message, "status": status.value, **given(value, *_ENDING_FACTS)}
        missing = [] if status is Status.COMPLETE else _missing(self.facts)
        if missing:
            self.facts["missing"] = missing
        self.is_open = False

    def item(self) -> JSONObject:
        if self.fold is None or not self.is_open:
            return {**self.facts}
        return {**self.facts, "message": self.fold.message}

    def state(self) -> JSONObject:
        """All that is known of it, as JSON. It stays as it is while folding goes on."""
        return {
            "version": 2,
            "facts": {**self.facts},
            "chunks": [[generation_id, count] for generation_id, count in self.chunks.items()],
            "fold": None if self.fold is None else self.fold.state(),
        }


def _missing(facts: JSONObject) -> list[JSON]:
    """What of an answer that did not complete was never told: `metadata` of the run, `toolResults` of its calls."""
    message = facts["message"] if isinstance(facts["message"], dict) else {}
    told = any(facts.get(name) or message.get(name) for name in _OF_THE_RUN)
    parts = ui_message(str(facts["format"]), message, ended=True)["parts"]
    calls = [part for part in parts if _is_call(part)] if isinstance(parts, list) else []
    without_result = any(isinstance(call, dict) and call.get("state") not in _WITH_RESULT for call in calls)
    missing: list[JSON] = [] if told else ["metadata"]
    return [*missing, "toolResults"] if without_result else missing


def _is_call(part: JSON) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and (kind == "dynamic-tool" or kind.startswith("tool-"))


def _continued(facts: JSONObject) -> Fold | None:
    """The fold that goes on with a complete message; None where its format knows no such thing."""
    message, chunk_format = facts["message"], facts["format"]
    try:
        return Fold.start(str(chunk_format), message if isinstance(message, dict) else None)
    except (UnknownFormat, BadMessage):
        return None


def status_of(facts: JSONObject) -> Status:
    """Raises ValueError if it is none."""
    status = facts.get("status")
    if not isinstance(status, str) or status not in _STATUSES:
        raise ValueError(f"{status!r} is no status")
    return _STATUSES[status]


def given(value: JSONObject, *names: str) -> JSONObject:
    """Those of the named fields that are there. Null stands for absent: a merging reader is told so to forget one."""
    return {name: value[name] for name in names if value.get(name) is not None}
