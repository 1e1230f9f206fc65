"""What bodies and answers of the session API hold, as types: for the OpenAPI document, and for whoever reads on.

Requests are read field by field elsewhere, because a refusal is to say what is wrong; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from broker import limits
from consumer.fold import FORMATS
from consumer.wire import SEQ_MAX

_ID_PATTERN: Final = rf"^(?!\.{{1,2}}$)[A-Za-z0-9._~:\-]{{1,{limits.ID_CHARS_MAX}}}$"

Id = Annotated[
    str, Meta(pattern=_ID_PATTERN, description="Chosen by the client, where it is one that the client makes.")
]
Text = Annotated[str, Meta(max_length=limits.HEADER_CHARS_MAX)]
Offset = Annotated[str, Meta(pattern="^[0-7][0-9a-f]{15}_[0-7][0-9a-f]{15}$", description="Opaque; sorts as text.")]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Format = Annotated[str, Meta(extra_json_schema={"enum": sorted(FORMATS)})]
LeaseMs = Annotated[int, Meta(ge=limits.LEASE_MS_MIN, le=limits.LEASE_MS_MAX)]
Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Status = Literal["pending", "streaming", "complete", "failed", "aborted"]
End = Literal["complete", "failed", "aborted"]


# -- bodies ----------------------------------------------------------------------------------------------------------


class Message(msgspec.Struct):
    """A whole message. Whatever else it holds is kept as it was spelled."""

    id: Id
    role: str


class SessionCreation(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What a session begins with, in the same step."""

    message: Message | None = None
    metadata: dict[str, Any] | None = None


class Reset(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Why a session begins anew."""

    reason: Text | None = None


class Fork(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The session to make, and where the two part: behind a message, at an offset, or at the end."""

    session_id: Id
    message_id: Id | None = None
    offset: Offset | None = None
    metadata: dict[str, Any] | None = None


class Import(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Where the records lie, how many they are, and what the session was."""

    stream: str
    records: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    created_at: Timestamp | None = None
    metadata: dict[str, Any] | None = None


class SessionStop(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Who stops what; without a lane, everything that runs."""

    lane: Id | None = None
    requested_by: Text | None = None
    reason: Text | None = None


class Record(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A State Protocol upsert that is neither a message nor a chunk."""

    type: Literal["presence", "approval", "settlement"]
    key: Annotated[str, Meta(min_length=1, max_length=limits.HEADER_CHARS_MAX)]
    value: dict[str, Any]
    txid: Id | None = None


class Opening(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What a generation is opened with."""

    message_id: Id | None = None
    lane: Id | None = None
    format: Format | None = None
    role: Id | None = None
    actor_id: Id | None = None
    lease_ms: LeaseMs | None = None
    on_conflict: Literal["interrupt", "reject"] | None = None
    continues: Id | None = None
    metadata: dict[str, Any] | None = None


class Finish(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """How a generation ended."""

    status: End = "complete"
    reason: Text | None = None
    error: Any = None
    usage: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class Stop(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Who stops it, and why."""

    requested_by: Text | None = None
    reason: Text | None = None


class FlatChunk(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """One chunk of a generation."""

    generation_id: Id
    chunk: Any
    message_id: Id | None = None


class FlatChunks(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Chunks of a generation."""

    generation_id: Id
    chunks: Annotated[list[Any], Meta(min_length=1)]
    message_id: Id | None = None


class FlatFinish(Finish, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """How which generation ended."""

    generation_id: Id
    message_id: Id | None = None


# -- answers ---------------------------------------------------------------------------------------------------------


class Created(msgspec.Struct, rename="camel"):
    """A session, made now or before."""

    session_id: Id
    created: bool
    created_at: Timestamp
    offset: Offset


class OpenGeneration(msgspec.Struct, rename="camel"):
    """A generation that runs."""

    generation_id: Id
    message_id: Id
    lane: Id
    fence: int
    status: Status


class Session(msgspec.Struct, rename="camel"):
    """A session in a few words."""

    session_id: Id
    offset: Offset
    created_at: Timestamp
    last_activity_at: Timestamp
    status: Literal["streaming", "idle"]
    generations: list[OpenGeneration]


class Sessions(msgspec.Struct, rename="camel"):
    """Sessions by last activity, the `after` of the next page, and where to follow what changes."""

    sessions: list[Session]
    next: str | None
    cursor: str


class Forked(msgspec.Struct, rename="camel"):
    """A fork, and where it parts from its source."""

    session_id: Id
    offset: Offset
    forked_from: Id
    fork_offset: Offset


class WasReset(msgspec.Struct, rename="camel"):
    """Where the session begins anew."""

    session_id: Id
    offset: Offset


class Stopped(msgspec.Struct, rename="camel"):
    """The generations that this stopped."""

    session_id: Id
    stopped: list[Id]


class Added(msgspec.Struct, rename="camel"):
    """A record, and the offset behind it."""

    session_id: Id
    offset: Offset


class AddedMessage(Added, rename="camel"):
    """A message, and the offset behind it."""

    message_id: Id


class Item(msgspec.Struct, rename="camel"):
    """A message as it is folded so far."""

    id: Id
    role: str
    status: Status
    message: Any


class OneMessage(Item, rename="camel"):
    """A message by itself."""

    session_id: Id


class Messages(msgspec.Struct, rename="camel"):
    """The messages, and where they stand: read the stream on from there."""

    session_id: Id
    offset: Offset
    messages: list[Item]
    next: Offset | None


class Generation(msgspec.Struct, rename="camel"):
    """What is known of a generation. `seq` is the highest accepted batch, -1 before the first."""

    session_id: Id
    generation_id: Id
    message_id: Id
    lane: Id
    fence: int
    status: Status
    format: str
    role: str
    chunks: int
    seq: int
    lease_ms: int
    created_at: Timestamp


class Opened(OpenGeneration, rename="camel"):
    """A generation that is open."""

    session_id: Id
    lease_ms: int


class Written(OpenGeneration, rename="camel"):
    """A batch that is durable. A copy is told what the original was told, and that it is one."""

    session_id: Id
    seq: Seq
    offset: Offset = ""
    duplicate: bool = False


class Accepted(msgspec.Struct, rename="camel"):
    """A batch that is not durable yet. Without `messageId` where it opens a generation that continues another."""

    session_id: Id
    generation_id: Id
    seq: Seq
    message_id: Id | None = None


class Renewed(msgspec.Struct, rename="camel"):
    """A lease that runs anew."""

    session_id: Id
    generation_id: Id
    message_id: Id
    lease_ms: int


class Ended(OpenGeneration, rename="camel"):
    """A generation that is over, by this or before."""

    session_id: Id


class Synced(msgspec.Struct, rename="camel"):
    """A read up to the offset has every record with the txid."""

    session_id: Id
    txid: Id
    offset: Offset


class Durability(msgspec.Struct, rename="camel"):
    """How writes become durable."""

    synchronous: bool
    durability: str


class Switch(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What is to be."""

    synchronous: bool
