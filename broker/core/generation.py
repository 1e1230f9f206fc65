"""What entries do to a generation: open it, write it, end it.

It is opened by its batch 0 or ahead of it, written by its batches, and ended once: by its finish, a stop, a newer
generation in its lane, its lease, or a reset of the session. After that another one may go on with its message.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from broker.core.admission import (
    confirm,
    fenced,
    generation_options,
    judge,
    judge_opening,
    options_of_later,
    superseded_by,
)
from broker.core.entry import ANY, Entry, GenerationOptions, Kind, LeaseOptions, StopOptions
from broker.core.events import chunk_records, generation_record, stop_record
from broker.core.outcome import Outcome, Result, refused
from broker.core.page import Page, json_page, records
from broker.core.producer import Verdict, accepted, check
from broker.core.session_work import Work, found, opened
from broker.core.state import (
    Changes,
    Generation,
    Key,
    Message,
    Session,
    Stream,
    generation_key,
    message_key,
    session_key,
    stream_key,
)
from consumer.wire import ENDED, Code, Reason, Status

_replace = msgspec.structs.replace
_stop_options = msgspec.msgpack.Decoder(StopOptions).decode
_lease_options = msgspec.msgpack.Decoder(LeaseOptions).decode

_STREAMING = Status.STREAMING.value
_CHUNKS = Kind.CHUNKS.value  # a member costs a call each time that it is named


def keys(entry: Entry) -> list[Key]:
    """Every row that an entry for a generation may need: see `apply.keys`."""
    if entry.kind == _CHUNKS and entry.seq > 0:
        return [*_keys_of_later(entry.path, entry.options)]
    found = [session_key(entry.path), stream_key(entry.path)]
    match entry.kind:
        case Kind.CHUNKS | Kind.FINISH | Kind.GENERATION_OPEN:
            options = generation_options(entry.options)
            found.append(generation_key(entry.path, options.generation_id))
            if entry.seq <= 0:  # may open it, and so take the message id, or go on with another one's message
                found.append(message_key(entry.path, options.message_id or options.generation_id))
                if options.continues:
                    found.append(generation_key(entry.path, options.continues))
        case Kind.STOP | Kind.HEARTBEAT:
            found.append(generation_key(entry.path, _stop_options(entry.options).generation_id))
        case Kind.LEASE_EXPIRE:
            found.append(generation_key(entry.path, _lease_options(entry.options).generation_id))
    return found


@lru_cache(maxsize=4096)
def _keys_of_later(path: str, options: bytes) -> tuple[Key, ...]:
    """Of a batch that opens nothing."""
    return session_key(path), stream_key(path), generation_key(path, generation_options(options).generation_id)


def open_ahead(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """GENERATION_OPEN: a generation that is pending until its first chunk; the same again is a success."""
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    options = generation_options(entry.options)
    known = work.generation(options.generation_id)
    if known is not None:
        return confirm(work, known, options)
    judged = judge_opening(work, options)
    if isinstance(judged, Outcome):
        return judged
    generation = _open(work, judged, Status.PENDING)
    work.put_open(generation)
    work.settle()
    return Outcome(
        Result.CREATED,
        stream=work.stream,
        generation=generation,
        next_position=work.stream.tail,
        epoch=generation.fence,
    )


def write(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """CHUNKS and FINISH: the next batch of a generation. Batch 0 of an id never seen opens it."""
    plain = _write_plain(changes, entry, index, now_ms) if entry.kind == _CHUNKS and entry.seq > 0 else None
    return write_any(changes, entry, index, now_ms) if plain is None else plain


def write_any(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """As `write`, of any batch."""
    judged = judge(changes, entry, index, now_ms)
    if isinstance(judged, Outcome):
        return judged
    work, options, generation = judged
    if generation is None:
        generation = _open(work, options, Status.STREAMING)
    elif generation.status == Status.PENDING and entry.body:
        generation = _begin(work, generation)
    generation = _replace(
        generation,
        chunks=generation.chunks + _add_chunks(work, generation),
        sequence=accepted(generation.sequence, entry.digest, work.next_position() + (entry.kind == Kind.FINISH)),
        renewed_index=index,
    )
    if entry.kind == Kind.FINISH:
        generation = _finish(work, generation, options)
    else:
        work.put_open(generation)
    work.settle()
    return Outcome(
        Result.ACCEPTED,
        stream=work.stream,
        generation=generation,
        next_position=work.stream.tail,
        epoch=generation.fence,
        seq=generation.sequence.seq,
    )


def _write_plain(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome | None:
    """The next batch of the one generation that is open in a session, as tokens are; None where anything else is so.

    What `write_any` does, in a third of the steps: every test that applies an entry holds both to the same.
    """
    of_session, of_stream, _ = _keys_of_later(entry.path, entry.options)
    stream, session = changes.rows[of_stream], changes.rows[of_session]
    if not (isinstance(stream, Stream) and isinstance(session, Session)) or len(session.open) != 1:
        return None
    if stream.deleted or stream.deadline_ms is not None or entry.incarnation not in (ANY, stream.incarnation):
        return None
    if not entry.body:
        return None
    generation = session.open[0]
    known, fence = generation.sequence, generation.fence
    if (
        generation.generation_id != options_of_later(entry.options).generation_id
        or generation.status != _STREAMING
        or check(fence, known, fence, entry.seq, entry.digest) is not Verdict.NEXT
    ):
        return None
    page = json_page(chunk_records(generation, _chunks(entry), entry.txid), stream.tail)
    tail = page.end
    sequence = accepted(known, entry.digest, tail)
    chunks = generation.chunks + tail - page.start
    generation = _replace(generation, chunks=chunks, sequence=sequence, renewed_index=index)
    stream = _replace(stream, tail=tail, active_ms=now_ms)
    changes.appended.append((entry.path, stream.incarnation, page))
    changes.puts[of_stream] = stream
    changes.puts[of_session] = _replace(session, open=(generation,), active_ms=now_ms)
    return Outcome(
        Result.ACCEPTED, stream=stream, generation=generation, next_position=tail, epoch=fence, seq=sequence.seq
    )


def _chunks(entry: Entry) -> list[bytes]:
    return records(Page(0, 0, entry.lengths, entry.body))


def stop(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """A stop record, then the end: whatever the producer sends from here on is refused."""
    options = _stop_options(entry.options)
    known = found(changes, entry, index, now_ms, options.generation_id)
    if isinstance(known, Outcome):
        return known
    work, generation = known
    if generation.status in ENDED:
        return Outcome(Result.UNCHANGED, stream=work.stream, generation=generation, next_position=work.stream.tail)
    ended = end_by_stop(work, generation, options.requested_by, options.reason)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, generation=ended, next_position=work.stream.tail)


def end_by_stop(work: Work, generation: Generation, requested_by: str, reason: str) -> Generation:
    """Stop one open generation."""
    work.records.append(stop_record(generation, requested_by, reason, work.entry.txid, work.now_ms))
    ended = work.end(generation, Status.ABORTED, Reason.STOPPED)
    work.raise_fence(generation.lane)
    return ended


def heartbeat(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Renew the lease of a generation that has nothing to write yet."""
    known = found(changes, entry, index, now_ms, _stop_options(entry.options).generation_id)
    if isinstance(known, Outcome):
        return known
    work, generation = known
    if generation.status in ENDED:
        return fenced(work, generation)
    renewed = _replace(generation, renewed_index=index)
    work.put_open(renewed)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, generation=renewed)


def expire_lease(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """End the generation of a dead producer; one that was renewed since the proposer looked lives on."""
    options = _lease_options(entry.options)
    known = found(changes, entry, index, now_ms, options.generation_id)
    if isinstance(known, Outcome):
        return known
    work, generation = known
    unchanged = generation.fence == options.fence and generation.renewed_index == options.renewed_index
    if generation.status in ENDED or not unchanged:
        return Outcome(Result.UNCHANGED, generation=generation)
    ended = work.end(generation, Status.FAILED, Reason.LEASE_EXPIRED)
    work.raise_fence(generation.lane)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, generation=ended, next_position=work.stream.tail)


def _open(work: Work, options: GenerationOptions, status: Status) -> Generation:
    """Raise the lane's fence, end the generations that it fences off, and begin this one."""
    if work.lane(options.lane) is None and len(work.session.lanes) >= options.lanes_max:
        idle = work.idle_lane()
        if idle is not None:
            work.forget_lane(idle)
    superseded = superseded_by(work, options)
    fence = work.raise_fence(options.lane)
    for older in superseded:
        work.end(older, Status.ABORTED, Reason.SUPERSEDED)
    generation = Generation(
        birth=work.session.birth,
        incarnation=work.stream.incarnation,
        generation_id=options.generation_id,
        message_id=options.message_id,
        lane=options.lane,
        fence=fence,
        format=options.format,
        role=options.role,
        actor_id=options.actor_id,
        lease_ms=options.lease_ms,
        created_ms=work.now_ms,
        renewed_index=work.index,
        status=status.value,
        metadata=options.metadata if work.entry.kind == Kind.GENERATION_OPEN else b"",
        continues=options.continues,
    )
    if options.continues:
        _note_continued(work, options)
    else:
        taken = Message(work.session.birth, work.stream.incarnation, 0, generation_id=options.generation_id)
        work.take_message(options.message_id, taken)
    work.records.append(generation_record(generation, b"insert", work.entry.txid))
    return generation


def _note_continued(work: Work, options: GenerationOptions) -> None:
    before = work.generation(options.continues)
    if before is not None:
        work.put_ended(_replace(before, continued_by=options.generation_id))


def _begin(work: Work, generation: Generation) -> Generation:
    """The first chunk of a generation that was opened ahead of it."""
    streaming = _replace(generation, status=Status.STREAMING.value)
    work.records.append(generation_record(streaming, b"update", work.entry.txid))
    return streaming


def _add_chunks(work: Work, generation: Generation) -> int:
    """How many there are."""
    entry = work.entry
    if not entry.body:
        return 0
    chunks = _chunks(entry)
    work.records.extend(chunk_records(generation, chunks, entry.txid))
    return len(chunks)


def _finish(work: Work, generation: Generation, options: GenerationOptions) -> Generation:
    metadata = options.metadata or generation.metadata
    told = _replace(generation, error=options.error, usage=options.usage, metadata=metadata)
    return work.end(told, Status(options.status), options.reason)
