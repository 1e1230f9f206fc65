"""A draft: the message so far, as the reference of one chunk format keeps it while chunks come in."""

from __future__ import annotations

from typing import ClassVar, Final, Literal, Protocol, Self, TypeAlias

from consumer.plain import DEPTH_MAX, JSON, JSONObject, nests_within

FaultCode: TypeAlias = Literal["malformed", "reported", "no-such-part", "bad-metadata", "bad-patch", "out-of-place"]

MESSAGE_CHARS_MAX: Final = 1_000
"""Of an error's text, which a chunk may bring along, this much is kept: enough to tell it apart, and no megabytes."""


class ChunkFault(Exception):
    """Why a chunk was not folded. It had no effect, except where the reference lets part of one through."""

    fatal: ClassVar[bool] = False
    """Whether the reference stops reading here, so that all later chunks are ignored."""

    def __init__(self, code: FaultCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message[:MESSAGE_CHARS_MAX]


class FatalChunk(ChunkFault):
    """The reference raises at this chunk and closes its output after the last good message."""

    fatal = True


class BadMessage(ValueError):
    """The message to start from is none: it needs a string `id` and `role` and a list of objects as `parts`."""


class Draft(Protocol):
    """What one format has to say. `Fold` drives it and keeps the books that all formats share.

    Values handed out never change afterwards: a draft replaces what it gave away, it does not edit it. In return it
    keeps parts of the chunks it was given, which must not be edited either.
    """

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        """A draft without chunks, continuing `initial` if the format would. Raises BadMessage if that is no message."""

    @classmethod
    def restore(cls, state: JSON) -> Self:
        """The draft that returned this from `state`. Raises ValueError or msgspec.ValidationError if none did."""

    def apply(self, chunk: JSON) -> bool:
        """Fold one chunk. Whether readers of the reference get the message anew because of it.

        Raises ChunkFault for a chunk that has no place, and nothing else, whatever the chunk is.
        """

    def message(self) -> JSONObject:
        """The message as it stands, also where readers have not been shown all of it."""

    def emitted(self) -> JSONObject | None:
        """The message as readers were last given it; None while they were given nothing."""

    def final(self) -> JSONObject | None:
        """What the reference makes of it when the chunks end here; None if it fails instead."""

    @property
    def finish_reason(self) -> str | None: ...

    def state(self) -> JSONObject:
        """All that `restore` needs, as plain data."""


def chunk_object(chunk: JSON) -> JSONObject:
    """The chunk. Raises ChunkFault if it is no object, or nests so deeply that the message could not be stored."""
    if not isinstance(chunk, dict):
        raise ChunkFault("malformed", "a chunk is an object")
    check_depth(chunk)
    return chunk


def check_depth(chunk: JSONObject) -> None:
    if not nests_within(chunk, DEPTH_MAX):
        raise ChunkFault("malformed", f"a chunk nests at most {DEPTH_MAX} deep")


def string(chunk: JSONObject, field: str) -> str:
    """A field that the fold itself reads. Raises ChunkFault if it is not a string."""
    value = chunk.get(field)
    if isinstance(value, str):
        return value
    raise ChunkFault("malformed", f"`{field}` is not a string")


def start_message(initial: JSONObject | None) -> JSONObject:
    """The message that a draft starts from: `initial` if it is an assistant's, else an empty one with its id."""
    if initial is None:
        return empty_message("")
    role, message_id = initial.get("role"), initial.get("id")
    if not isinstance(role, str) or not isinstance(message_id, str):
        raise BadMessage("a message has a string `id` and `role`")
    parts_of(initial)
    return initial if role == "assistant" else empty_message(message_id)


def empty_message(message_id: str) -> JSONObject:
    return {"id": message_id, "role": "assistant", "parts": []}


def parts_of(message: JSONObject) -> list[JSONObject]:
    """A new list of the message's parts. Raises BadMessage if it is not a list of objects with a string `type`."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        raise BadMessage("the `parts` of a message are a list")
    found = [part for part in parts if isinstance(part, dict) and isinstance(part.get("type"), str)]
    if len(found) != len(parts):
        raise BadMessage("a part of a message is an object with a string `type`")
    return found
