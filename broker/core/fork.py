"""What entries do to forks (PROTOCOL.md 4.2): a stream that begins with another one's records, without a copy of them.

Source and fork may be in different partitions, so making one takes two entries:

1. FORK_REF at the source makes every check on it, and notes the child: from here on the source keeps its records.
2. FORK at the child's path creates it, unless the deadline has passed or the path is taken.

When the child is gone, or never came, FORK_UNREF takes the note away. Each is idempotent, and what is left to do can be
read off the rows: a note whose child does not exist, and cannot come any more, is to be taken away. So a crash between
any two heals by somebody looking.
"""

from __future__ import annotations

import msgspec

from broker.core.entry import ANY, Entry, ForkOptions, ForkRefOptions, ForkUnrefOptions, Kind, encode_options
from broker.core.offset import InvalidOffset
from broker.core.outcome import Outcome, Result, refused
from broker.core.state import Changes, Child, Segment, Stream, media_type, stream_key
from broker.core.stream import extend, live, remove
from consumer.wire import Code

_replace = msgspec.structs.replace
_ref_options = msgspec.msgpack.Decoder(ForkRefOptions).decode
_fork_options = msgspec.msgpack.Decoder(ForkOptions).decode
_unref_options = msgspec.msgpack.Decoder(ForkUnrefOptions).decode


def ref(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """Check the source, and note the child that is about to come. The outcome's position is where they part."""
    options = _ref_options(entry.options)
    stream = live(changes, entry.path, now_ms)
    if stream is None:
        return refused(Code.STREAM_NOT_FOUND, f"there is no source {entry.path}")
    if stream.deleted:
        return refused(Code.FORK_SOURCE_GONE, stream=stream)
    if options.content_type and media_type(options.content_type) != media_type(stream.content_type):
        return refused(Code.CONTENT_TYPE_MISMATCH, f"the source holds {stream.content_type}", stream=stream)
    position = fork_position(stream, options.offset, options.sub_offset)
    if position is None or position > stream.tail:
        return refused(Code.INVALID_OFFSET, "no position of the source", stream=stream)
    child = Child(options.child_path, entry.nonce, options.deadline_ms)
    if any(known.path == child.path and known.incarnation == child.incarnation for known in stream.children):
        return Outcome(Result.UNCHANGED, stream=stream, next_position=position)
    if len(stream.forks) >= options.forks_max:
        return refused(Code.TOO_MANY_FORKS, f"the source has {len(stream.forks)} forks", stream=stream)
    stream = _replace(stream, children=(*stream.children, child))
    changes.put(stream_key(entry.path), stream)
    return Outcome(Result.ACCEPTED, stream=stream, next_position=position)


def fork(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """Create the child, or confirm that this very fork is there."""
    options = _fork_options(entry.options)
    stream = live(changes, entry.path, now_ms)
    if stream is not None:
        if not stream.deleted and _is_same(stream, options):
            return Outcome(Result.UNCHANGED, stream=stream, next_position=stream.tail)
        return refused(Code.STREAM_EXISTS, "another stream is there", stream=stream)
    if not options.lineage or now_ms > options.deadline_ms:
        return refused(Code.UNAVAILABLE, "the fork took too long to make; try again")
    lineage = tuple(Segment(*segment) for segment in options.lineage)
    stream = Stream(
        incarnation=entry.nonce,
        content_type=options.content_type,
        created_ms=now_ms,
        active_ms=now_ms,
        tail=lineage[-1].end,
        closed=options.closed,
        ttl_s=options.ttl_s,
        expires_at=options.expires_at,
        expires_at_ms=options.expires_at_ms,
        source=(options.source_path, options.source_incarnation),
        lineage=lineage,
    )
    if entry.body:
        stream = _replace(stream, tail=extend(changes, entry.path, stream, entry.lengths, entry.body))
    changes.put(stream_key(entry.path), stream)
    return Outcome(Result.CREATED, stream=stream, next_position=stream.tail)


def unref(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """The child is gone. A source that was deleted and that nobody else needs goes too."""
    options = _unref_options(entry.options)
    stream = live(changes, entry.path, now_ms)
    if stream is None:
        return Outcome(Result.UNCHANGED)
    without = _without(stream, entry.incarnation, (options.child_path, options.child_incarnation))
    if without is None:
        return Outcome(Result.UNCHANGED, stream=stream)
    changes.put(stream_key(entry.path), without)
    kept = {past.incarnation for past in without.past}
    for past in stream.past:
        if past.incarnation not in kept:
            changes.end(entry.path, past.incarnation)
    if without.deleted and not without.is_needed:
        remove(changes, entry.path, without)
    return Outcome(Result.ACCEPTED, stream=without)


def _without(stream: Stream, incarnation: int, gone: tuple[str, int]) -> Stream | None:
    """The source without the note of a child that is gone; None where there is no such note."""
    if incarnation in (ANY, stream.incarnation):
        children = _others(stream.children, gone)
        return None if len(children) == len(stream.children) else _replace(stream, children=children)
    past = next((past for past in stream.past if past.incarnation == incarnation), None)
    if past is None or len(_others(past.children, gone)) == len(past.children):
        return None
    rest = _replace(past, children=_others(past.children, gone))
    kept = (rest if each is past else each for each in stream.past)
    return _replace(stream, past=tuple(each for each in kept if each.children))


def _others(children: tuple[Child, ...], gone: tuple[str, int]) -> tuple[Child, ...]:
    return tuple(child for child in children if (child.path, child.incarnation) != gone)


def unref_entry(source_path: str, source_incarnation: int, child_path: str, child_incarnation: int) -> Entry:
    """The entry that tells a source that it has one child less."""
    options = ForkUnrefOptions(child_path, child_incarnation)
    return Entry(Kind.FORK_UNREF, source_path, incarnation=source_incarnation, options=encode_options(options))


def lineage_of(source: Stream, source_path: str, position: int) -> tuple[tuple[str, int, int], ...]:
    """Where the records of `source` before `position` lie, for a fork that parts there."""
    inherited = [(s.path, s.incarnation, s.end) for s in source.lineage if s.end < position]
    if position > source.begin or not source.lineage:
        return (*inherited, (source_path, source.incarnation, position))
    owner = next(segment for segment in source.lineage if segment.end >= position)
    return (*inherited, (owner.path, owner.incarnation, position))


def fork_position(stream: Stream, offset: str, sub_offset: int) -> int | None:
    """The position that Stream-Fork-Offset and -Sub-Offset name in a stream; None where they name none."""
    if not offset:
        return stream.tail + sub_offset
    try:
        position = stream.position(offset)
    except InvalidOffset:
        return None
    return None if position is None else position + sub_offset


def _is_same(stream: Stream, options: ForkOptions) -> bool:
    """Whether a fork is what such a request would make; what the request left open is as it is."""
    if stream.source is None or stream.source[0] != options.source_path:
        return False
    if options.offset and fork_position(stream, options.offset, options.sub_offset) != stream.begin:
        return False
    content_type, ttl_s, expires_at_ms = options.wanted
    return (
        (not content_type or media_type(content_type) == media_type(stream.content_type))
        and (
            (ttl_s is None and expires_at_ms is None) or (stream.ttl_s, stream.expires_at_ms) == (ttl_s, expires_at_ms)
        )
        and stream.closed == options.closed
    )
