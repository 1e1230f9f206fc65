"""The state that entries are applied to: rows by key, each an immutable value.

    b"s" path                      Stream
    b"p" path NUL producer id      Producer
    b"S" session path              Session, with its lanes and its open generations
    b"g" session path NUL gid      Generation, once it has ended
    b"m" session path NUL mid      Message
    b"w" subscription id           Subscription

A row that belongs to one life of a path names it (`incarnation`, or for what outlives a reset the session's `birth`); a
row of another life counts as absent. So the keys that an entry needs follow from the entry alone, and a delete does not
have to find its rows before it is told.

Being values, rows hold no cycles: the collector need not know of them (`gc=False`).

Stored form: msgpack array behind a tag (`encode_row`). Fields are only ever appended, with defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from broker.core.offset import format_offset, parse_offset
from broker.core.page import Page
from broker.core.producer import Sequence
from consumer.wire import JSON, Status

Key = bytes

ROW_VERSION: Final = 1


class Segment(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Records that a fork inherits: from the end of the segment before up to `end` they lie in this life."""

    path: str
    incarnation: int
    end: int


class Child(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A fork of this stream. It is there by `deadline_ms` of the partition's time, or never."""

    path: str
    incarnation: int
    deadline_ms: int


class Past(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A life of the path that a reset ended while forks needed its records: kept until the last of them is gone."""

    incarnation: int
    children: tuple[Child, ...]
    source: tuple[str, int] | None = None  # as in `Stream`


class Stream(msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False):
    """One life of a path.

    `tail` is the position after the last record; it only grows. `active_ms` is when it was last written, or read where
    reading renews (PROTOCOL.md 5.1): never later than the partition's time. `producers` counts the Producer rows.

    A fork has a `source` and begins at the end of its `lineage`; what lies before is read where the lineage says.
    `children` are the forks that need this life's records: while there are any, a delete only sets `deleted`. `past`
    are earlier lives that were reset, as long as forks need theirs.
    """

    incarnation: int
    content_type: str
    created_ms: int
    active_ms: int
    tail: int = 0
    closed: bool = False
    closed_by: tuple[str, int, int] | None = None  # the (producer, epoch, seq) whose append closed it
    stream_seq: str | None = None
    ttl_s: int | None = None
    expires_at: str | None = None
    expires_at_ms: int | None = None
    producers: int = 0
    source: tuple[str, int] | None = None  # (path, incarnation) of what this is a fork of
    lineage: tuple[Segment, ...] = ()
    children: tuple[Child, ...] = ()
    deleted: bool = False
    past: tuple[Past, ...] = ()

    @property
    def is_needed(self) -> bool:
        """Whether forks need records of this life, or of an earlier one."""
        return bool(self.children or self.past)

    @property
    def forks(self) -> tuple[tuple[int, Child], ...]:
        """All forks, each with the life whose records it needs."""
        own = ((self.incarnation, child) for child in self.children)
        return (*own, *((past.incarnation, child) for past in self.past for child in past.children))

    @property
    def begin(self) -> int:
        """The position of the first record of its own."""
        return self.lineage[-1].end if self.lineage else 0

    def life_at(self, position: int) -> int:
        """Whose offset names `position`: a fork speaks its source's up to and including where they part."""
        for segment in self.lineage:
            if position <= segment.end:
                return segment.incarnation
        return self.incarnation

    def offset(self, position: int) -> str:
        """The offset of a position."""
        return format_offset(position, self.life_at(position))

    def position(self, offset: str) -> int | None:
        """The position that an offset of this stream names; None for an offset of another life.

        Raises InvalidOffset for text that no broker issues. May lie beyond the tail.
        """
        position, incarnation = parse_offset(offset)
        return position if incarnation in (0, self.life_at(position)) else None

    @property
    def is_json(self) -> bool:
        """Whether positions count records."""
        return media_type(self.content_type) == JSON

    @property
    def deadline_ms(self) -> int | None:
        """The time from which the stream is gone, or None.

        A sliding TTL gets a tenth more: readers renew it by entries that come at most once per TTL/10, so that a
        stream which is read all the time never dies between two of them.
        """
        if self.deleted:
            return None
        if self.expires_at_ms is not None:
            return self.expires_at_ms
        if self.ttl_s is not None:
            return self.active_ms + self.ttl_s * 1100
        return None


class Producer(msgspec.Struct, tag=2, array_like=True, frozen=True, gc=False):
    """What an idempotent producer has had accepted by one life of a stream."""

    incarnation: int
    epoch: int
    sequence: Sequence
    active_ms: int


class Lane(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A producer id of a session. `epoch` is the fence of the newest generation in it; it only grows."""

    name: str
    epoch: int


class Generation(msgspec.Struct, tag=5, array_like=True, frozen=True, gc=False):
    """One attempt to write one message. In its session's row while open, in a row of its own once ended.

    `chunks` numbers the chunk records; `sequence` counts its batches, the finish included. `renewed_index` is the
    index of the entry that last renewed the lease. `continues` is the generation whose message this one goes on with,
    `continued_by` the one that goes on with this one's: at most one, since a message has one writer.
    """

    birth: int
    incarnation: int
    generation_id: str
    message_id: str
    lane: str
    fence: int
    format: str
    role: str
    actor_id: str
    lease_ms: int
    created_ms: int
    renewed_index: int
    status: str = Status.STREAMING.value
    sequence: Sequence = Sequence()
    chunks: int = 0
    ended_ms: int = 0
    reason: str = ""
    error: bytes = b""
    usage: bytes = b""
    metadata: bytes = b""
    continues: str = ""
    continued_by: str = ""


class Session(msgspec.Struct, tag=3, array_like=True, frozen=True, gc=False):
    """A session, across resets. `birth` is drawn by the entry that created it.

    `lanes` are in the order of their newest generations, the latest last. `lane_floor` is at least the epoch of every
    lane that was forgotten to make room, so that fences rise across that too. `origin` is the source of a fork: its
    path, and what the request said of the fork position.
    """

    birth: int
    created_ms: int
    active_ms: int
    metadata: bytes = b""
    lanes: tuple[Lane, ...] = ()
    open: tuple[Generation, ...] = ()
    metadata_digest: bytes = b""  # empty without metadata, or if it came before there were digests
    lane_floor: int = 0
    reset_ms: int = 0  # when it was last reset …
    reset_reason: str = ""  # … and why
    origin: tuple[str, str] | None = None


class Message(msgspec.Struct, tag=4, array_like=True, frozen=True, gc=False):
    """That a message id is taken: by a whole message (`digest` of it), or by a generation."""

    birth: int
    incarnation: int
    next_position: int  # where the stream stood after the whole message
    digest: bytes = b""
    generation_id: str = ""


class Link(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stream of a subscription, and its cursor: up to `acked` all is processed, in the life `incarnation`.

    Another life of the path has nothing processed. `wake_tail` is the tail that the newest wake named: never below
    `acked` when the wake is made.
    """

    path: str
    incarnation: int
    acked: int
    explicit: bool = False
    wake_tail: int = 0


class Wake(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A wake under way: being delivered while `next_attempt_ms` says when to try again, delivered when it is None.

    `renewed_index` is the index of the entry that last renewed it. Only a claim sets `holder`.
    """

    wake_id: str
    path: str  # of the stream that it is told for
    woken_ms: int
    renewed_index: int
    attempt: int = 0
    next_attempt_ms: int | None = None
    holder: str = ""


class Subscription(msgspec.Struct, tag=6, array_like=True, frozen=True, gc=False):
    """A durable subscription (PROTOCOL.md 6, 7). What is pending is not in it: that follows from the streams' tails.

    `generation` counts its wakes and only grows. `linked` says that every stream that matched when it was created has
    been linked; any that is found unlinked later has come after it.
    """

    birth: int
    subscription_id: str
    digest: bytes
    created_ms: int
    delivery: str  # "webhook" or "pull-wake"
    lease_ms: int
    pattern: str = ""
    webhook_url: str = ""
    wake_stream: str = ""
    description: str | None = None
    base_url: str = ""
    linked: bool = False
    generation: int = 0
    wake: Wake | None = None
    links: tuple[Link, ...] = ()


Row = Stream | Producer | Session | Message | Generation | Subscription

_row_encoder = msgspec.msgpack.Encoder()
_row_decoder: msgspec.msgpack.Decoder[Row] = msgspec.msgpack.Decoder(Row)


def encode_row(row: Row) -> bytes:
    """The stored form of a row."""
    return _row_encoder.encode(row)


def decode_row(data: bytes) -> Row:
    """The row behind `encode_row`. Raises msgspec.DecodeError for anything else."""
    return _row_decoder.decode(data)


def owner(row: Row) -> int:
    """The life that a row belongs to and goes with."""
    return row.incarnation if isinstance(row, Stream | Producer) else row.birth


def is_watched(row: Row) -> bool:
    """Whether somebody must look after the row unasked: open generations, the forks of a stream, any subscription."""
    if isinstance(row, Subscription):
        return True
    return (isinstance(row, Session) and bool(row.open)) or (isinstance(row, Stream) and row.is_needed)


def media_type(content_type: str) -> str:
    """`type/subtype` without parameters, lower case: what content types are compared by."""
    if content_type == JSON:
        return JSON
    return content_type.partition(";")[0].strip().lower()


def same_media_type(one: str, other: str) -> bool:
    """Whether two content types are the same but for parameters and case."""
    return one == other or media_type(one) == media_type(other)


@lru_cache(maxsize=4096)
def stream_key(path: str) -> Key:
    """The key of the Stream row of `path`."""
    return b"s" + path.encode()


def producer_key(path: str, producer_id: str) -> Key:
    """The key of the Producer row of a producer of `path`."""
    return b"p%b\0%b" % (path.encode(), producer_id.encode())


@lru_cache(maxsize=4096)
def session_key(path: str) -> Key:
    """The key of the Session row; `path` is its stream's."""
    return b"S" + path.encode()


def generation_key(path: str, generation_id: str) -> Key:
    """The key of an ended generation."""
    return b"g%b\0%b" % (path.encode(), generation_id.encode())


def message_key(path: str, message_id: str) -> Key:
    """The key of a message id."""
    return b"m%b\0%b" % (path.encode(), message_id.encode())


def subscription_key(subscription_id: str) -> Key:
    """The key of a subscription."""
    return b"w" + subscription_id.encode()


def owned_prefixes(path: str) -> tuple[Key, ...]:
    """Where the rows that go with a life of `path` lie, besides its own: key ranges [prefix, prefix + 0xff)."""
    return tuple(b"%b%b\0" % (letter, path.encode()) for letter in (b"p", b"g", b"m"))


class Changes(msgspec.Struct, gc=False):
    """What one entry changes: computed on top of `rows`, installed as a whole or not at all.

    `rows` must hold every key that `apply.keys` names; None stands for a row that does not exist.
    """

    rows: Mapping[Key, Row | None]
    puts: dict[Key, Row | None] = {}
    appended: list[tuple[str, int, Page]] = []
    """(path, incarnation, records)"""
    ended: list[tuple[str, int]] = []
    """Lives that are over: (path, incarnation or birth)."""

    def get(self, key: Key) -> Row | None:
        """The row as this entry sees it. Raises KeyError for a key that was not loaded: a bug in `apply.keys`."""
        if key in self.puts:
            return self.puts[key]
        return self.rows[key]

    def put(self, key: Key, row: Row | None) -> None:
        """Set a row; None removes it."""
        self.puts[key] = row

    def append(self, path: str, incarnation: int, page: Page) -> None:
        """Add records to a stream."""
        self.appended.append((path, incarnation, page))

    def end(self, path: str, life: int) -> None:
        """Everything that belongs to this life of `path` may be swept."""
        self.ended.append((path, life))
