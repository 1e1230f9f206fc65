"""What entries do to a session: create, delete, reset, fork, whole messages and other records, and a stop of all.

A reset ends everything that the session is and keeps what protects it: its lanes' fences and the ids of what ended.
"""

from __future__ import annotations

import msgspec

from broker.core import generation as generations
from broker.core.entry import (
    Entry,
    ImportOptions,
    InheritedGeneration,
    Kind,
    MessageOptions,
    RecordOptions,
    ResetOptions,
    SessionExpireOptions,
    SessionForkOptions,
    SessionOptions,
    SessionStopOptions,
)
from broker.core.events import headers, record
from broker.core.outcome import Outcome, Result, refused
from broker.core.session_work import Work, message_exists, opened
from broker.core.state import (
    Changes,
    Generation,
    Key,
    Message,
    Past,
    Segment,
    Session,
    Stream,
    message_key,
    session_key,
    stream_key,
)
from broker.core.stream import live, remove
from consumer.wire import ENDED, JSON, Code, Reason, RecordType, Status

_BIRTH = 1 << 62
"""Tells the birth of a session from the first incarnation of its stream, drawn from the same nonce: a reset ends the
one and keeps the other."""

_replace = msgspec.structs.replace
_session_options = msgspec.msgpack.Decoder(SessionOptions).decode
_message_options = msgspec.msgpack.Decoder(MessageOptions).decode
_record_options = msgspec.msgpack.Decoder(RecordOptions).decode
_stop_options = msgspec.msgpack.Decoder(SessionStopOptions).decode
_reset_options = msgspec.msgpack.Decoder(ResetOptions).decode
_fork_options = msgspec.msgpack.Decoder(SessionForkOptions).decode
_expire_options = msgspec.msgpack.Decoder(SessionExpireOptions).decode
_import_options = msgspec.msgpack.Decoder(ImportOptions).decode

_OF_SESSION = frozenset(
    {
        Kind.SESSION_CREATE,
        Kind.SESSION_DELETE,
        Kind.SESSION_RESET,
        Kind.SESSION_FORK,
        Kind.SESSION_STOP,
        Kind.MESSAGE,
        Kind.RECORD,
        Kind.IMPORT,
        Kind.SESSION_EXPIRE,
    }
)


def keys(entry: Entry) -> list[Key]:
    """Every row that a session entry may need: see `apply.keys`."""
    if entry.kind not in _OF_SESSION:
        return generations.keys(entry)
    found = [session_key(entry.path), stream_key(entry.path)]
    if entry.kind == Kind.SESSION_CREATE:
        message_id = _session_options(entry.options).message_id
        if message_id:
            found.append(message_key(entry.path, message_id))
    elif entry.kind == Kind.MESSAGE:
        found.append(message_key(entry.path, _message_options(entry.options).message_id))
    return found


def create(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Create a session, its first message in the same entry: both exist, or neither."""
    options = _session_options(entry.options)
    work = opened(changes, entry, index, now_ms)
    if work is not None:
        return _confirm(work, options)
    if live(changes, entry.path, now_ms) is not None:
        return refused(Code.SESSION_EXISTS, "forks still need the session that was deleted here")
    session = Session(entry.nonce ^ _BIRTH, now_ms, now_ms, options.metadata, metadata_digest=options.metadata_digest)
    work = Work(changes, entry, index, now_ms, session, Stream(entry.nonce, JSON, now_ms, now_ms))
    changes.put(stream_key(entry.path), work.stream)
    if options.message_id:
        _add_message(work, options.message_id)
    work.settle()
    return Outcome(Result.CREATED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def delete(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Delete a session with everything under it."""
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    return _removed(work)


def expire(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Delete a session that nobody has used for so long; one that changed since the proposer looked lives on.

    One that was reset has been used; one that was forked is.
    """
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    options, session, stream = _expire_options(entry.options), work.session, work.stream
    is_idle = not session.open and now_ms - session.active_ms >= options.unused_ms
    if not is_idle or stream.tail != options.tail or stream.is_needed or session.reset_ms:
        return Outcome(Result.UNCHANGED, stream=stream, session=session)
    return _removed(work)


def _removed(work: Work) -> Outcome:
    path = work.entry.path
    remove(work.changes, path, work.stream)
    work.changes.put(session_key(path), None)
    work.changes.end(path, work.session.birth)
    return Outcome(Result.ACCEPTED, session=work.session)


def reset(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Empty a session: a new life of its stream, in which nothing of the old one can write.

    What was open ends in its row. A record of that would lie in the life that is over, where nobody can read it.
    """
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    for open_generation in work.session.open:
        work.file(open_generation, Status.ABORTED, Reason.RESET)
    for lane in work.session.lanes:
        work.raise_fence(lane.name)
    work.stream = _next_life(changes, entry, work.stream, now_ms)
    reason = _reset_options(entry.options).reason
    work.session = _replace(work.session, reset_ms=now_ms, reset_reason=reason, origin=None)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, session=work.session, next_position=0)


def _next_life(changes: Changes, entry: Entry, stream: Stream, now_ms: int) -> Stream:
    """End a life of the path and begin another. Forks keep the records that they need."""
    past = stream.past
    if stream.children:
        past = (*past, Past(stream.incarnation, stream.children, stream.source))
    else:
        changes.end(entry.path, stream.incarnation)
    stream = Stream(entry.nonce, JSON, now_ms, now_ms, past=past)
    changes.put(stream_key(entry.path), stream)
    return stream


def fork(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Create a session with another one's records up to a position, or confirm that this very fork is there.

    What was open at that position cannot go on here: it ends, as the first records of the child.
    """
    return _begin_with_records(changes, entry, index, now_ms, _fork_options(entry.options), now_ms)


def import_records(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Create a session of records that lie in another stream already, or confirm that this has been done.

    It was created when the records say so, and nothing is added to them.
    """
    options = _import_options(entry.options)
    return _begin_with_records(changes, entry, index, now_ms, options, options.created_ms)


def _begin_with_records(
    changes: Changes, entry: Entry, index: int, now_ms: int, options: SessionForkOptions, created_ms: int
) -> Outcome:
    origin = (options.source_path, options.selector)
    work = opened(changes, entry, index, now_ms)
    if work is not None:
        if work.session.origin == origin:
            return Outcome(Result.UNCHANGED, stream=work.stream, session=work.session, next_position=work.stream.tail)
        return refused(Code.SESSION_EXISTS, "another session is there", stream=work.stream)
    if live(changes, entry.path, now_ms) is not None:
        return refused(Code.SESSION_EXISTS, "forks still need the session that was deleted here")
    if not options.lineage or now_ms > options.deadline_ms:
        return refused(Code.UNAVAILABLE, "the fork took too long to make; try again")
    lineage = tuple(Segment(*segment) for segment in options.lineage)
    source = (options.source_path, options.source_incarnation)
    stream = Stream(entry.nonce, JSON, now_ms, now_ms, lineage[-1].end, source=source, lineage=lineage)
    changes.put(stream_key(entry.path), stream)
    session = Session(
        entry.nonce ^ _BIRTH,
        created_ms,
        now_ms,
        options.metadata,
        metadata_digest=options.metadata_digest,
        lane_floor=max((inherited.fence for inherited in options.generations), default=0),
        origin=origin,
    )
    work = Work(changes, entry, index, now_ms, session, stream)
    _inherit(work, options)
    work.settle()
    return Outcome(Result.CREATED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def stop(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Stop whatever is open, in one lane or in all."""
    options = _stop_options(entry.options)
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    running = [generation for generation in work.session.open if options.lane in ("", generation.lane)]
    if not running:
        return Outcome(Result.UNCHANGED, stream=work.stream, session=work.session, next_position=work.stream.tail)
    stopped = [generations.end_by_stop(work, each, options.requested_by, options.reason) for each in running]
    work.settle()
    return Outcome(
        Result.ACCEPTED,
        stream=work.stream,
        session=work.session,
        next_position=work.stream.tail,
        stopped=tuple(stopped),
    )


def add_message(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Add a whole message; the same id with the same content again is a success that changes nothing."""
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    message_id = _message_options(entry.options).message_id
    taken = work.message(message_id)
    if taken is not None:
        if taken.digest != entry.digest:
            return message_exists(work, message_id)
        return Outcome(Result.DUPLICATE, stream=work.stream, session=work.session, next_position=taken.next_position)
    _add_message(work, message_id)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def add_record(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Add an upsert of presence, approval or settlement: readers keep the newest of each key."""
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    options = _record_options(entry.options)
    told = headers(b"upsert", entry.txid, work.now_ms)
    work.records.append(record(options.type, options.key, entry.body, told))
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def _confirm(work: Work, options: SessionOptions) -> Outcome:
    """The answer to a create of a session that is there."""
    if _contradicts(work.session, options):
        return refused(Code.SESSION_EXISTS, "the session is there, with other metadata", stream=work.stream)
    if options.message_id:
        taken = work.message(options.message_id)
        if taken is None:
            return refused(Code.SESSION_EXISTS, "the session is there, without this message", stream=work.stream)
        if taken.digest != work.entry.digest:
            return message_exists(work, options.message_id)
    return Outcome(Result.UNCHANGED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def _contradicts(session: Session, options: SessionOptions) -> bool:
    """Whether a create says other metadata than the session has. Whoever says none confirms any."""
    if not options.metadata_digest or (session.metadata and not session.metadata_digest):
        return False
    return options.metadata_digest != session.metadata_digest


def _add_message(work: Work, message_id: str) -> None:
    entry = work.entry
    work.records.append(record(RecordType.MESSAGE, message_id, entry.body, headers(b"insert", entry.txid, work.now_ms)))
    taken = Message(work.session.birth, work.stream.incarnation, work.next_position(), entry.digest)
    work.take_message(message_id, taken)


def _inherit(work: Work, options: SessionForkOptions) -> None:
    """Take over what has taken an id before the fork position, so that it stays taken."""
    birth, incarnation = work.session.birth, work.stream.incarnation
    for told in options.messages:
        taken = Message(birth, incarnation, told.next_position, told.digest, told.generation_id)
        work.take_message(told.message_id, taken)
    for inherited in options.generations:
        generation = _inherited(work, inherited)
        if generation.status in ENDED:
            work.put_ended(generation)
        else:
            work.end(generation, Status.ABORTED, Reason.FORKED)


def _inherited(work: Work, told: InheritedGeneration) -> Generation:
    return Generation(
        birth=work.session.birth,
        incarnation=work.stream.incarnation,
        generation_id=told.generation_id,
        message_id=told.message_id,
        lane=told.lane,
        fence=told.fence,
        format=told.format,
        role=told.role,
        actor_id=told.actor_id,
        lease_ms=0,
        created_ms=told.created_ms,
        renewed_index=0,
        status=told.status,
        chunks=told.chunks,
        ended_ms=told.ended_ms,
        reason=told.reason,
        error=told.error,
        usage=told.usage,
        metadata=told.metadata,
        continues=told.continues,
        continued_by=told.continued_by,
    )
