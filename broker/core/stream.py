"""What entries do to a stream: create, append, close, delete, expire, touch.

The order of checks is one table for every way in (PROTOCOL.md 5.2 "Error Precedence"): exists → closed → content type →
producer → Stream-Seq. A refusal and a duplicate change nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import msgspec

from broker.core.entry import (
    ANY,
    AppendOptions,
    CreateOptions,
    Entry,
    Kind,
    ProducerForgetOptions,
)
from broker.core.outcome import Outcome, Result, refused
from broker.core.page import Page
from broker.core.producer import Sequence, Verdict, accepted, check, receipt_of
from broker.core.state import Changes, Producer, Stream, producer_key, same_media_type, stream_key
from consumer.wire import Code

R = TypeVar("R", Stream, Producer)

_replace = msgspec.structs.replace
_create_options = msgspec.msgpack.Decoder(CreateOptions).decode
_append_options = lru_cache(maxsize=256)(msgspec.msgpack.Decoder(AppendOptions).decode)  # most are the same few bytes
_forget_options = msgspec.msgpack.Decoder(ProducerForgetOptions).decode


def live(changes: Changes, path: str, now_ms: int) -> Stream | None:
    """The stream at `path`, or None; one that was deleted but is still needed by its forks says so itself.

    A stream whose deadline has passed is expired by whoever comes upon it.
    """
    row = changes.get(stream_key(path))
    if row is None:
        return None
    stream = _of_type(row, Stream)
    deadline_ms = stream.deadline_ms
    return stream if deadline_ms is None or deadline_ms > now_ms else remove(changes, path, stream)


def remove(changes: Changes, path: str, stream: Stream) -> Stream | None:
    """End this life of the path; forks that need its records keep it, deleted, and then that is returned."""
    if stream.is_needed:
        stream = _replace(stream, deleted=True)
        changes.put(stream_key(path), stream)
        return stream
    changes.put(stream_key(path), None)
    changes.end(path, stream.incarnation)
    return None


def named(changes: Changes, entry: Entry, now_ms: int) -> Stream | Outcome:
    """The stream that the entry means: of the life that its proposer saw, where that was told. Else the refusal."""
    stream = live(changes, entry.path, now_ms)
    if stream is None or entry.incarnation not in (ANY, stream.incarnation):
        return refused(Code.STREAM_NOT_FOUND)
    if stream.deleted:
        return refused(Code.STREAM_GONE, stream=stream)
    return stream


def create(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """PROTOCOL.md 5.1: create, or confirm that the same stream is there."""
    options = _create_options(entry.options)
    stream = live(changes, entry.path, now_ms)
    if stream is not None:
        if stream.deleted:
            return refused(Code.STREAM_EXISTS, "forks still need the stream that was deleted here", stream=stream)
        if stream.source is None and _same_configuration(stream, options):
            return Outcome(Result.UNCHANGED, stream=stream, next_position=stream.tail)
        return refused(Code.STREAM_EXISTS, "a stream with another configuration is there", stream=stream)
    stream = Stream(
        incarnation=entry.nonce,
        content_type=options.content_type,
        created_ms=now_ms,
        active_ms=now_ms,
        closed=options.closed,
        ttl_s=options.ttl_s,
        expires_at=options.expires_at,
        expires_at_ms=options.expires_at_ms,
    )
    if entry.body:
        stream = _replace(stream, tail=extend(changes, entry.path, stream, entry.lengths, entry.body))
    changes.put(stream_key(entry.path), stream)
    return Outcome(Result.CREATED, stream=stream, next_position=stream.tail)


def append(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """PROTOCOL.md 5.2, 5.2.1, 5.3: append, append and close, or close."""
    judged = judge(changes, entry, now_ms)
    return judged if isinstance(judged, Outcome) else _accept(changes, entry, now_ms, *judged)


def judge(changes: Changes, entry: Entry, now_ms: int) -> Outcome | tuple[AppendOptions, Stream, Producer | None]:
    """The answer to an append that is refused or changes nothing; for any other what accepting it takes."""
    stream = named(changes, entry, now_ms)
    if isinstance(stream, Outcome):
        return stream
    if stream.closed:
        return _append_to_closed(entry, stream)
    options = _append_options(entry.options)
    if entry.kind == Kind.APPEND and not same_media_type(stream.content_type, options.content_type):
        return refused(Code.CONTENT_TYPE_MISMATCH, f"the stream holds {stream.content_type}", stream=stream)
    producer = None
    if entry.producer_id:
        producer = _producer_of(changes, entry, stream)
        answer = _judge_batch(entry, options, stream, producer)
        if answer is not None:
            return answer
    if options.stream_seq is not None and stream.stream_seq is not None and options.stream_seq <= stream.stream_seq:
        return refused(Code.STREAM_SEQ_REGRESSION, f"Stream-Seq is at {stream.stream_seq!r}", stream=stream)
    return options, stream, producer


def delete(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """PROTOCOL.md 5.4."""
    stream = named(changes, entry, now_ms)
    if isinstance(stream, Outcome):
        return stream
    remove(changes, entry.path, stream)
    return Outcome(Result.ACCEPTED, stream=stream)


def expire(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """Take an overdue stream away; one that was renewed or replaced meanwhile stays."""
    before = changes.get(stream_key(entry.path))
    after = live(changes, entry.path, now_ms)
    return Outcome(Result.UNCHANGED if before is after else Result.ACCEPTED)


def touch(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """A read renews a sliding TTL (PROTOCOL.md 5.1)."""
    stream = named(changes, entry, now_ms)
    if isinstance(stream, Outcome) or stream.ttl_s is None:
        return Outcome(Result.UNCHANGED)
    changes.put(stream_key(entry.path), _replace(stream, active_ms=now_ms))
    return Outcome(Result.ACCEPTED)


def forget_producer(changes: Changes, entry: Entry, now_ms: int) -> Outcome:
    """Drop a producer that has been idle since before the time named, to make room for another."""
    options = _forget_options(entry.options)
    key = producer_key(entry.path, options.producer_id)
    stream, row = named(changes, entry, now_ms), changes.get(key)
    if isinstance(stream, Outcome) or row is None:
        return Outcome(Result.UNCHANGED)
    producer = _of_type(row, Producer)
    if producer.incarnation != stream.incarnation or producer.active_ms >= options.idle_since_ms:
        return Outcome(Result.UNCHANGED)
    changes.put(key, None)
    changes.put(stream_key(entry.path), _replace(stream, producers=stream.producers - 1))
    return Outcome(Result.ACCEPTED)


def extend(changes: Changes, path: str, stream: Stream, lengths: bytes, data: bytes) -> int:
    """Add records or bytes at the tail; returns the new tail."""
    end = stream.tail + (len(lengths) // 4 if lengths else len(data))
    changes.append(path, stream.incarnation, Page(stream.tail, end, lengths, data))
    return end


def _same_configuration(stream: Stream, options: CreateOptions) -> bool:
    return (
        same_media_type(stream.content_type, options.content_type)
        and stream.ttl_s == options.ttl_s
        and stream.expires_at_ms == options.expires_at_ms
        and stream.closed == options.closed
    )


def _append_to_closed(entry: Entry, stream: Stream) -> Outcome:
    """Only the request that closed it, or one that asks for nothing but closure, succeeds (PROTOCOL.md 5.2.1)."""
    if entry.producer_id and stream.closed_by == (entry.producer_id, entry.epoch, entry.seq):
        # What closed the stream stays its producer's newest batch; the producer's own row may have been forgotten.
        return Outcome(Result.DUPLICATE, stream=stream, next_position=stream.tail, epoch=entry.epoch, seq=entry.seq)
    if entry.kind == Kind.CLOSE:
        return Outcome(Result.UNCHANGED, stream=stream, next_position=stream.tail)
    return refused(Code.STREAM_CLOSED, stream=stream, next_position=stream.tail)


def _producer_of(changes: Changes, entry: Entry, stream: Stream) -> Producer:
    """What is known of the entry's producer; one never seen counts as just begun at the epoch it names."""
    row = changes.get(producer_key(entry.path, entry.producer_id))
    if row is not None:
        producer = _of_type(row, Producer)
        if producer.incarnation == stream.incarnation:
            return producer
    return Producer(stream.incarnation, entry.epoch, Sequence(), active_ms=-1)


def _judge_batch(entry: Entry, options: AppendOptions, stream: Stream, producer: Producer) -> Outcome | None:
    """The answer to a batch that is not the producer's next one; None for the next one."""
    known = producer.sequence
    verdict = check(producer.epoch, known, entry.epoch, entry.seq, entry.digest)
    match verdict:
        case Verdict.NEXT:
            if producer.active_ms < 0 and stream.producers >= options.producers_max:
                return refused(Code.TOO_MANY_PRODUCERS, f"the stream has {stream.producers} producers", stream=stream)
            return None
        case Verdict.DUPLICATE:
            receipt = receipt_of(known, entry.seq)
            return Outcome(
                Result.DUPLICATE,
                stream=stream,
                next_position=None if receipt is None else receipt.next_position,
                epoch=producer.epoch,
                seq=known.seq,
            )
        case Verdict.STALE:
            return refused(Code.FENCED, "a newer epoch of this producer writes", stream=stream, epoch=producer.epoch)
        case Verdict.LATE_START:
            return refused(Code.EPOCH_START, "a new epoch begins with seq 0", stream=stream, epoch=producer.epoch)
        case Verdict.GAP:
            return refused(Code.SEQ_GAP, stream=stream, epoch=producer.epoch, expected_seq=known.seq + 1)
        case Verdict.MISMATCH:
            return refused(
                Code.PAYLOAD_MISMATCH,
                "this seq was accepted with other bytes",
                stream=stream,
                epoch=producer.epoch,
                seq=known.seq,
            )


def _accept(
    changes: Changes, entry: Entry, now_ms: int, options: AppendOptions, stream: Stream, producer: Producer | None
) -> Outcome:
    tail = stream.tail
    if entry.body:
        tail = extend(changes, entry.path, stream, entry.lengths, entry.body)
    closes = options.closes or entry.kind == Kind.CLOSE
    stream = Stream(
        stream.incarnation,
        stream.content_type,
        stream.created_ms,
        now_ms,
        tail,
        closes,
        (entry.producer_id, entry.epoch, entry.seq) if closes and entry.producer_id else None,
        stream.stream_seq if options.stream_seq is None else options.stream_seq,
        stream.ttl_s,
        stream.expires_at,
        stream.expires_at_ms,
        stream.producers + (producer is not None and producer.active_ms < 0),
        stream.source,
        stream.lineage,
        stream.children,
    )
    changes.put(stream_key(entry.path), stream)
    if producer is None:
        return Outcome(Result.ACCEPTED, stream=stream, next_position=tail)
    known = producer.sequence if entry.epoch == producer.epoch else Sequence()
    sequence = accepted(known, entry.digest, tail)
    changes.put(
        producer_key(entry.path, entry.producer_id), Producer(stream.incarnation, entry.epoch, sequence, now_ms)
    )
    return Outcome(Result.ACCEPTED, stream=stream, next_position=tail, epoch=entry.epoch, seq=sequence.seq)


def _of_type(row: object, expected: type[R]) -> R:
    """The row as what its key says it is. Raises TypeError: then two kinds of rows share a key, a bug."""
    if not isinstance(row, expected):
        msg = f"a {type(row).__name__} under the key of a {expected.__name__}"
        raise TypeError(msg)
    return row
