"""Entries: operations as they are ordered and made durable, and their one binary form.

    byte 0        format version, `FORMAT_VERSION`
    byte 1 …      msgpack array of the fields of `Entry`, in their order

What may change: fields are only ever appended to `Entry` and to the option structs, each with a default, so that older
bytes still decode. What never may: the meaning or order of a field, a kind's number. A change in what `apply` does with
the same bytes is a new `APPLY_LEVEL`; the old behaviour stays for as long as any journal holds it.

The time of an entry is not in it: the journal gives it, together with the index.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Final

import msgspec

FORMAT_VERSION: Final = 1
APPLY_LEVEL: Final = 1
ANY: Final = 0
"""As an expected incarnation: whichever life the path has."""
NEXT_SEQ: Final = -1
"""As the seq of a batch: the next one, whichever that is. Such a batch has no copies: sent twice, it counts twice."""


class Kind(IntEnum):
    """What an entry asks for. Numbers are on disk: never reused, never renumbered."""

    NOOP = 0
    CREATE = 1
    APPEND = 2
    CLOSE = 3
    DELETE = 4
    EXPIRE = 5
    TOUCH = 6
    PRODUCER_FORGET = 7
    FORK_REF = 8
    FORK = 9
    FORK_UNREF = 10

    SESSION_CREATE = 16
    SESSION_DELETE = 17
    MESSAGE = 18
    CHUNKS = 19
    FINISH = 20
    STOP = 21
    HEARTBEAT = 22
    LEASE_EXPIRE = 23
    GENERATION_OPEN = 24
    SESSION_RESET = 25
    SESSION_FORK = 26
    SESSION_STOP = 27
    RECORD = 28
    SESSION_EXPIRE = 29

    SUBSCRIPTION_CREATE = 32
    SUBSCRIPTION_LINK = 33
    SUBSCRIPTION_ATTEMPT = 34
    SUBSCRIPTION_CLAIM = 35
    SUBSCRIPTION_ACK = 36
    SUBSCRIPTION_DELETE = 37

    IMPORT = 112
    # reserved for the live move of a session between engines
    MOVING = 113
    MOVED = 114


class UnknownFormat(ValueError):
    """The bytes are of a newer version: this program must not guess what they mean, and stops."""


class CreateOptions(msgspec.Struct, array_like=True, frozen=True):
    """CREATE: the configuration of a stream (PROTOCOL.md 5.1)."""

    content_type: str = "application/octet-stream"
    ttl_s: int | None = None
    expires_at: str | None = None  # as the client wrote it, to be given back
    expires_at_ms: int | None = None
    closed: bool = False


class AppendOptions(msgspec.Struct, array_like=True, frozen=True):
    """APPEND and CLOSE."""

    content_type: str = ""
    stream_seq: str | None = None
    closes: bool = False
    producers_max: int = 10_000


class ForkRefOptions(msgspec.Struct, array_like=True, frozen=True):
    """FORK_REF, in the source's partition: all that is to be checked of the source. The child's life is the nonce."""

    child_path: str
    deadline_ms: int  # partition time; a child that is not there by then never will be
    offset: str = ""  # Stream-Fork-Offset; "" for the tail
    sub_offset: int = 0
    content_type: str = ""  # as requested; "" inherits
    forks_max: int = 1_000


class ForkOptions(msgspec.Struct, array_like=True, frozen=True):
    """FORK, in the child's partition: the child's configuration, settled with the source's row at hand.

    `lineage` are (path, incarnation, end) of the lives that the inherited records lie in, in order. An entry without
    one only confirms a fork that is there.
    """

    source_path: str
    source_incarnation: int
    lineage: tuple[tuple[str, int, int], ...]
    deadline_ms: int
    offset: str = ""
    sub_offset: int = 0
    content_type: str = ""
    ttl_s: int | None = None
    expires_at: str | None = None
    expires_at_ms: int | None = None
    closed: bool = False
    wanted: tuple[str, int | None, int | None] = ("", None, None)  # content type, TTL, expiry, as requested


class ForkUnrefOptions(msgspec.Struct, array_like=True, frozen=True):
    """FORK_UNREF, in the source's partition: that child is gone, or never came."""

    child_path: str
    child_incarnation: int


class SessionOptions(msgspec.Struct, array_like=True, frozen=True):
    """SESSION_CREATE: the first message travels as the record of the entry, `message_id` names it."""

    metadata: bytes = b""  # JSON object, or nothing
    message_id: str = ""
    metadata_digest: bytes = b""  # equal for equal metadata, however it is spelled; empty without any


class MessageOptions(msgspec.Struct, array_like=True, frozen=True):
    """MESSAGE: a whole message, the one record of the entry."""

    message_id: str


class GenerationOptions(msgspec.Struct, array_like=True, frozen=True):
    """CHUNKS, FINISH and GENERATION_OPEN: what a generation is, for what opens it; and how it ends, for FINISH.

    With `continues`, what is left empty (message id, lane, format) is that of the generation which is continued.
    """

    generation_id: str
    message_id: str = ""
    lane: str = "main"
    format: str = ""
    role: str = "assistant"
    actor_id: str = ""
    lease_ms: int = 30_000
    generations_max: int = 64  # open ones in one session
    lanes_max: int = 256  # lanes in one session
    status: str = ""
    reason: str = ""
    error: bytes = b""  # JSON, or nothing
    usage: bytes = b""  # JSON object, or nothing
    metadata: bytes = b""  # JSON object, or nothing
    continues: str = ""  # the generation whose message this one goes on with
    yields: bool = False  # gives way to a generation that is open in the lane, instead of superseding it
    frees_lanes: bool = False  # where there are too many, a lane that nobody writes in makes room


class StopOptions(msgspec.Struct, array_like=True, frozen=True):
    """STOP and HEARTBEAT."""

    generation_id: str
    requested_by: str = ""
    reason: str = ""


class SessionStopOptions(msgspec.Struct, array_like=True, frozen=True):
    """SESSION_STOP: stops whatever is open, in one lane or in all."""

    lane: str = ""
    requested_by: str = ""
    reason: str = ""


class ResetOptions(msgspec.Struct, array_like=True, frozen=True):
    """SESSION_RESET. The nonce of the entry is the new incarnation."""

    reason: str = ""


class SessionExpireOptions(msgspec.Struct, array_like=True, frozen=True):
    """SESSION_EXPIRE: deletes a session that nobody has used. The proposer has seen that there is nothing below `tail`.

    Holds only while the session is as it was seen, and has been for `unused_ms` of the partition's time.
    """

    tail: int
    unused_ms: int


class RecordOptions(msgspec.Struct, array_like=True, frozen=True):
    """RECORD: an upsert of something that no message folds from; its value is the body of the entry."""

    type: str
    key: str


class InheritedMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message id that a forked session takes over, as `state.Message` has it."""

    message_id: str
    next_position: int = 0
    digest: bytes = b""
    generation_id: str = ""


class InheritedGeneration(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A generation that a forked session takes over, as `state.Generation` has it at the fork position."""

    generation_id: str
    message_id: str
    lane: str
    fence: int
    format: str
    role: str
    status: str
    chunks: int
    created_ms: int
    ended_ms: int = 0
    actor_id: str = ""
    reason: str = ""
    error: bytes = b""
    usage: bytes = b""
    metadata: bytes = b""
    continues: str = ""
    continued_by: str = ""


class SessionForkOptions(msgspec.Struct, array_like=True, frozen=True):
    """SESSION_FORK, in the child's partition, once the source has noted the child (FORK_REF).

    What is inherited is told by whoever proposes: it is read off the source's records before the fork position, which
    never change. An entry without a lineage only confirms a fork that is there. `selector` is what the request said of
    the fork position.
    """

    source_path: str
    source_incarnation: int
    lineage: tuple[tuple[str, int, int], ...]
    deadline_ms: int
    selector: str = ""
    messages: tuple[InheritedMessage, ...] = ()
    generations: tuple[InheritedGeneration, ...] = ()
    metadata: bytes = b""  # JSON object, or nothing
    metadata_digest: bytes = b""


class ImportOptions(SessionForkOptions, array_like=True, frozen=True):
    """IMPORT: a session out of the records of an ordinary stream, which it goes on from as a fork does.

    Its generations have all ended.
    """

    created_ms: int = 0


class LeaseOptions(msgspec.Struct, array_like=True, frozen=True):
    """LEASE_EXPIRE: holds only while nobody renewed since `renewed_index` (CORE: leases are decided by entries)."""

    generation_id: str
    fence: int
    renewed_index: int


class ProducerForgetOptions(msgspec.Struct, array_like=True, frozen=True):
    """PRODUCER_FORGET: drops a producer that has been idle since before `idle_since_ms`."""

    producer_id: str
    idle_since_ms: int


Place = tuple[str, int, int]
"""A stream's path, its incarnation (0 when there is no stream), and a position in that life."""


class SubscriptionOptions(msgspec.Struct, array_like=True, frozen=True):
    """SUBSCRIPTION_CREATE (PROTOCOL.md 6.2). The digest of the entry is that of the normalized configuration.

    The path of these entries is the subscription's id; their incarnation, where it is not ANY, its birth.
    """

    delivery: str
    lease_ms: int
    pattern: str = ""
    streams: tuple[Place, ...] = ()  # the explicit ones, with their tails
    webhook_url: str = ""
    wake_stream: str = ""
    description: str | None = None
    base_url: str = ""  # where the callbacks of this subscription go: the URL of the stream root


class LinkOptions(msgspec.Struct, array_like=True, frozen=True):
    """SUBSCRIPTION_LINK: what lies behind the positions is pending from now on; a stream that is linked stays as it is.

    `complete` says that every stream that matched when the subscription was created is linked.
    """

    streams: tuple[Place, ...] = ()
    explicit: bool = False
    drop: tuple[str, ...] = ()  # explicit: links that were added so; otherwise links of streams that are no more
    links_max: int = 1_000
    complete: bool = False


class AttemptOptions(msgspec.Struct, array_like=True, frozen=True):
    """SUBSCRIPTION_ATTEMPT: whoever has it accepted delivers. Attempt 0 makes the wake, out of the tails it names."""

    generation: int
    attempt: int = 0
    delay_ms: int = 1_000  # until the next attempt is due
    tails: tuple[Place, ...] = ()


class ClaimOptions(msgspec.Struct, array_like=True, frozen=True):
    """SUBSCRIPTION_CLAIM: makes the wake itself where none is under way and the tails say that work is pending."""

    worker: str
    tails: tuple[Place, ...] = ()


class AckOptions(msgspec.Struct, array_like=True, frozen=True):
    """SUBSCRIPTION_ACK: moves cursors, renews the lease, and ends the wake where it is `done`; a release is done alone.

    `delivered` comes from whoever delivered. `snapshot` acks the tails of the wake as it was made. With `expires`, the
    wake ends if nobody has renewed it since that index.
    """

    generation: int
    wake_id: str
    acks: tuple[Place, ...] = ()
    done: bool = False
    snapshot: bool = False
    delivered: bool = False
    expires: int | None = None


type_of_options: Final[dict[Kind, type[msgspec.Struct]]] = {
    Kind.CREATE: CreateOptions,
    Kind.APPEND: AppendOptions,
    Kind.CLOSE: AppendOptions,
    Kind.PRODUCER_FORGET: ProducerForgetOptions,
    Kind.FORK_REF: ForkRefOptions,
    Kind.FORK: ForkOptions,
    Kind.FORK_UNREF: ForkUnrefOptions,
    Kind.SESSION_CREATE: SessionOptions,
    Kind.MESSAGE: MessageOptions,
    Kind.CHUNKS: GenerationOptions,
    Kind.FINISH: GenerationOptions,
    Kind.STOP: StopOptions,
    Kind.HEARTBEAT: StopOptions,
    Kind.LEASE_EXPIRE: LeaseOptions,
    Kind.GENERATION_OPEN: GenerationOptions,
    Kind.SESSION_RESET: ResetOptions,
    Kind.SESSION_FORK: SessionForkOptions,
    Kind.SESSION_STOP: SessionStopOptions,
    Kind.RECORD: RecordOptions,
    Kind.SESSION_EXPIRE: SessionExpireOptions,
    Kind.IMPORT: ImportOptions,
    Kind.SUBSCRIPTION_CREATE: SubscriptionOptions,
    Kind.SUBSCRIPTION_LINK: LinkOptions,
    Kind.SUBSCRIPTION_ATTEMPT: AttemptOptions,
    Kind.SUBSCRIPTION_CLAIM: ClaimOptions,
    Kind.SUBSCRIPTION_ACK: AckOptions,
}


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One operation. Everything that `apply` needs besides the state, the index and the time."""

    kind: int
    path: str
    apply_level: int = APPLY_LEVEL
    incarnation: int = ANY  # the life of `path` that the proposer saw, or ANY
    boot: int = 0  # the proposer: one life of a broker process …
    proposal: int = 0  # … and the number of this proposal in it, rising
    nonce: int = 0  # all the randomness that `apply` may need; becomes the incarnation of what a create makes
    producer_id: str = ""  # "" when no idempotent producer wrote this
    epoch: int = 0
    seq: int = 0
    digest: bytes = b""  # of the body, when a producer or a message id guards it
    txid: str = ""
    actor: str = ""
    request_id: str = ""
    traceparent: str = ""
    options: bytes = b""  # msgpack of the kind's option struct
    lengths: bytes = b""  # as in `page.Page`: how the body divides into records; empty in byte mode
    body: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
_VERSION_BYTE: Final = bytes([FORMAT_VERSION])


def encode(entry: Entry) -> bytes:
    """The bytes of an entry, as every journal holds them."""
    return _VERSION_BYTE + _encoder.encode(entry)


def decode(data: bytes) -> Entry:
    """The entry behind `encode`.

    Raises UnknownFormat for a version that this program does not know, and msgspec.ValidationError or DecodeError for
    bytes that no version makes.
    """
    if not data or data[0] != FORMAT_VERSION:
        msg = f"entry of format version {data[0] if data else 'none'}; this program knows {FORMAT_VERSION}"
        raise UnknownFormat(msg)
    entry = _decoder.decode(memoryview(data)[1:])
    if entry.apply_level > APPLY_LEVEL:
        msg = f"entry of apply level {entry.apply_level}; this program knows levels up to {APPLY_LEVEL}"
        raise UnknownFormat(msg)
    return entry


def encode_options(options: msgspec.Struct) -> bytes:
    """The `options` field of an entry."""
    return _encoder.encode(options)


def body_digest(body: bytes) -> bytes:
    """What tells a resent batch from another one with the same seq: 8 bytes of BLAKE2b."""
    return hashlib.blake2b(body, digest_size=8).digest()
