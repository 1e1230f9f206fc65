"""What entries do to a session: create, delete, whole messages, and the life of generations.

A session's records are State Protocol change events, rendered here; their bytes are part of the log and never change
for an apply level. A generation is opened by its batch 0, written by the batches that follow, and ended once: by its
finish, a stop, a newer generation in its lane, or its lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence as Seq
from datetime import UTC, datetime

import msgspec

from broker.core.entry import (
    Entry,
    GenerationOptions,
    Kind,
    LeaseOptions,
    MessageOptions,
    SessionOptions,
    StopOptions,
)
from broker.core.outcome import Outcome, Result, refused
from broker.core.page import Page, json_page, records
from broker.core.producer import Verdict, accepted, check, receipt_of
from broker.core.state import (
    Changes,
    Generation,
    Lane,
    Message,
    Session,
    Stream,
    generation_key,
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
_json = msgspec.json.encode
_session_options = msgspec.msgpack.Decoder(SessionOptions).decode
_message_options = msgspec.msgpack.Decoder(MessageOptions).decode
_generation_options = msgspec.msgpack.Decoder(GenerationOptions).decode
_stop_options = msgspec.msgpack.Decoder(StopOptions).decode
_lease_options = msgspec.msgpack.Decoder(LeaseOptions).decode


class _Work:
    """A session as one entry finds and leaves it: rows, and the records to add."""

    def __init__(
        self, changes: Changes, entry: Entry, index: int, now_ms: int, session: Session, stream: Stream
    ) -> None:
        self.changes = changes
        self.entry = entry
        self.index = index
        self.now_ms = now_ms
        self.session = session
        self.stream = stream
        self.records: list[bytes] = []

    def generation(self, generation_id: str) -> Generation | None:
        """The generation, open or ended."""
        for generation in self.session.open:
            if generation.generation_id == generation_id:
                return generation
        row = self.changes.get(generation_key(self.entry.path, generation_id))
        return row if isinstance(row, Generation) and row.birth == self.session.birth else None

    def message(self, message_id: str) -> Message | None:
        """What has taken the message id."""
        row = self.changes.get(message_key(self.entry.path, message_id))
        return row if isinstance(row, Message) and row.birth == self.session.birth else None

    def put_open(self, generation: Generation) -> None:
        """Set an open generation."""
        others = (g for g in self.session.open if g.generation_id != generation.generation_id)
        self.session = _replace(self.session, open=(*others, generation))

    def epoch(self, lane: str) -> int:
        """The lane's fence; 0 before its first generation."""
        return next((known.epoch for known in self.session.lanes if known.name == lane), 0)

    def raise_fence(self, lane: str) -> int:
        """Fence off every generation that the lane has had; returns the new epoch."""
        epoch = self.epoch(lane) + 1
        others = (known for known in self.session.lanes if known.name != lane)
        self.session = _replace(self.session, lanes=(*others, Lane(lane, epoch)))
        return epoch

    def next_position(self) -> int:
        """Where the stream stands after the records added so far."""
        return self.stream.tail + len(self.records)

    def end(self, generation: Generation, status: Status, reason: str) -> Generation:
        """Write the one canonical end of a generation, and file it among the ended."""
        ended = _replace(generation, status=status.value, reason=reason, ended_ms=self.now_ms)
        self.records.append(_generation_record(ended, b"update", self.entry.txid))
        remaining = tuple(g for g in self.session.open if g.generation_id != ended.generation_id)
        self.session = _replace(self.session, open=remaining)
        self.changes.put(generation_key(self.entry.path, ended.generation_id), ended)
        return ended

    def settle(self) -> None:
        """Put the rows and records."""
        if self.records:
            page = json_page(self.records, self.stream.tail)
            self.changes.append(self.entry.path, self.stream.incarnation, page)
            self.stream = _replace(self.stream, tail=page.end, active_ms=self.now_ms)
            self.changes.put(stream_key(self.entry.path), self.stream)
        self.changes.put(session_key(self.entry.path), _replace(self.session, active_ms=self.now_ms))


def keys(entry: Entry) -> list[bytes]:
    """Every row that a session entry may need: see `apply.keys`."""
    found = [session_key(entry.path), stream_key(entry.path)]
    match entry.kind:
        case Kind.SESSION_CREATE:
            message_id = _session_options(entry.options).message_id
            if message_id:
                found.append(message_key(entry.path, message_id))
        case Kind.MESSAGE:
            found.append(message_key(entry.path, _message_options(entry.options).message_id))
        case Kind.CHUNKS | Kind.FINISH:
            options = _generation_options(entry.options)
            found.append(generation_key(entry.path, options.generation_id))
            if entry.seq == 0:  # may open it, and so take the message id
                found.append(message_key(entry.path, options.message_id))
        case Kind.STOP | Kind.HEARTBEAT:
            found.append(generation_key(entry.path, _stop_options(entry.options).generation_id))
        case Kind.LEASE_EXPIRE:
            found.append(generation_key(entry.path, _lease_options(entry.options).generation_id))
    return found


def create(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Create a session, its first message in the same entry: both exist, or neither."""
    options = _session_options(entry.options)
    work = _open(changes, entry, index, now_ms)
    if work is not None:
        return _confirm(work, options)
    if live(changes, entry.path, now_ms) is not None:
        return refused(Code.SESSION_EXISTS, "forks still need the session that was deleted here")
    session = Session(entry.nonce ^ _BIRTH, now_ms, now_ms, options.metadata)
    work = _Work(changes, entry, index, now_ms, session, Stream(entry.nonce, JSON, now_ms, now_ms))
    changes.put(stream_key(entry.path), work.stream)
    if options.message_id:
        _add_message(work, options.message_id)
    work.settle()
    return Outcome(Result.CREATED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def delete(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Delete a session with everything under it."""
    work = _open(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    remove(changes, entry.path, work.stream)
    changes.put(session_key(entry.path), None)
    changes.end(entry.path, work.session.birth)
    return Outcome(Result.ACCEPTED, session=work.session)


def add_message(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Add a whole message; the same id with the same content again is a success that changes nothing."""
    work = _open(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    message_id = _message_options(entry.options).message_id
    taken = work.message(message_id)
    if taken is not None:
        if taken.digest != entry.digest:
            return _message_exists(work, message_id)
        return Outcome(Result.DUPLICATE, stream=work.stream, session=work.session, next_position=taken.next_position)
    _add_message(work, message_id)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def write(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """CHUNKS and FINISH: the next batch of a generation. Batch 0 of an id never seen opens it."""
    judged = judge(changes, entry, index, now_ms)
    if isinstance(judged, Outcome):
        return judged
    work, options, generation = judged
    if generation is None:
        generation = _open_generation(work, options)
    generation = _add_chunks(work, generation)
    generation = _replace(
        generation,
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


def judge(
    changes: Changes, entry: Entry, index: int, now_ms: int
) -> Outcome | tuple[_Work, GenerationOptions, Generation | None]:
    """The answer to a batch that is refused or a duplicate; for any other what accepting it takes.

    No generation is there yet when the batch opens it.
    """
    work = _open(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    options = _generation_options(entry.options)
    generation = work.generation(options.generation_id)
    if generation is not None:
        answer = _judge_batch(work, generation)
    elif entry.seq == 0:
        answer = _refuse_opening(work, options)
    else:
        answer = refused(Code.SEQ_GAP, "the generation begins with seq 0", expected_seq=0)
    return (work, options, generation) if answer is None else answer


def stop(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """A stop record, then the end: whatever the producer sends from here on is refused."""
    found = _find(changes, entry, index, now_ms, _stop_options(entry.options).generation_id)
    if isinstance(found, Outcome):
        return found
    work, generation = found
    if generation.status in ENDED:
        return Outcome(Result.UNCHANGED, stream=work.stream, generation=generation, next_position=work.stream.tail)
    work.records.append(_stop_record(generation, _stop_options(entry.options), entry.txid, now_ms))
    ended = work.end(generation, Status.ABORTED, Reason.STOPPED)
    work.raise_fence(generation.lane)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, generation=ended, next_position=work.stream.tail)


def heartbeat(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """Renew the lease of a generation that has nothing to write yet."""
    found = _find(changes, entry, index, now_ms, _stop_options(entry.options).generation_id)
    if isinstance(found, Outcome):
        return found
    work, generation = found
    if generation.status in ENDED:
        return _fenced(work, generation)
    renewed = _replace(generation, renewed_index=index)
    work.put_open(renewed)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, generation=renewed)


def expire_lease(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """End the generation of a dead producer; one that was renewed since the proposer looked lives on."""
    options = _lease_options(entry.options)
    found = _find(changes, entry, index, now_ms, options.generation_id)
    if isinstance(found, Outcome):
        return found
    work, generation = found
    unchanged = generation.fence == options.fence and generation.renewed_index == options.renewed_index
    if generation.status in ENDED or not unchanged:
        return Outcome(Result.UNCHANGED, generation=generation)
    ended = work.end(generation, Status.FAILED, Reason.LEASE_EXPIRED)
    work.raise_fence(generation.lane)
    work.settle()
    return Outcome(Result.ACCEPTED, stream=work.stream, generation=ended, next_position=work.stream.tail)


def _open(changes: Changes, entry: Entry, index: int, now_ms: int) -> _Work | None:
    """The session that the entry names; None when there is none."""
    stream = live(changes, entry.path, now_ms)
    session = changes.get(session_key(entry.path))
    if stream is None or stream.deleted or not isinstance(session, Session):
        return None
    return _Work(changes, entry, index, now_ms, session, stream)


def _find(
    changes: Changes, entry: Entry, index: int, now_ms: int, generation_id: str
) -> tuple[_Work, Generation] | Outcome:
    work = _open(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    generation = work.generation(generation_id)
    if generation is None:
        return refused(Code.GENERATION_NOT_FOUND, stream=work.stream)
    return work, generation


def _confirm(work: _Work, options: SessionOptions) -> Outcome:
    """The answer to a create of a session that is there."""
    if options.message_id:
        taken = work.message(options.message_id)
        if taken is None:
            return refused(Code.SESSION_EXISTS, "the session is there, without this message", stream=work.stream)
        if taken.digest != work.entry.digest:
            return _message_exists(work, options.message_id)
    return Outcome(Result.UNCHANGED, stream=work.stream, session=work.session, next_position=work.stream.tail)


def _add_message(work: _Work, message_id: str) -> None:
    entry = work.entry
    headers = _headers(b"insert", entry.txid, work.now_ms)
    work.records.append(_record(RecordType.MESSAGE, message_id, entry.body, headers))
    taken = Message(work.session.birth, work.stream.incarnation, work.next_position(), entry.digest)
    work.changes.put(message_key(entry.path, message_id), taken)


def _message_exists(work: _Work, message_id: str) -> Outcome:
    return refused(Code.MESSAGE_EXISTS, f"message {message_id} has other content", stream=work.stream)


def _judge_batch(work: _Work, generation: Generation) -> Outcome | None:
    """The answer to a batch that is not the next one of a generation that is open; None for that one."""
    entry, known = work.entry, generation.sequence
    verdict = check(generation.fence, known, generation.fence, entry.seq, entry.digest)
    if verdict is Verdict.DUPLICATE:
        receipt = receipt_of(known, entry.seq)
        return Outcome(
            Result.DUPLICATE,
            stream=work.stream,
            generation=generation,
            next_position=None if receipt is None else receipt.next_position,
            epoch=generation.fence,
            seq=known.seq,
        )
    if verdict is Verdict.MISMATCH:
        return refused(
            Code.PAYLOAD_MISMATCH,
            "this seq was accepted with other bytes",
            stream=work.stream,
            generation=generation,
            epoch=generation.fence,
            seq=known.seq,
        )
    if generation.status in ENDED:
        return _fenced(work, generation)
    if verdict is Verdict.GAP:
        return refused(
            Code.SEQ_GAP,
            stream=work.stream,
            generation=generation,
            epoch=generation.fence,
            seq=known.seq,
            expected_seq=known.seq + 1,
        )
    return None


def _fenced(work: _Work, generation: Generation) -> Outcome:
    return refused(
        Code.FENCED,
        "the generation has ended",
        stream=work.stream,
        generation=generation,
        epoch=work.epoch(generation.lane),
        seq=generation.sequence.seq,
    )


def _refuse_opening(work: _Work, options: GenerationOptions) -> Outcome | None:
    """Why a generation cannot be opened; None when it can."""
    if work.message(options.message_id) is not None:
        return _message_exists(work, options.message_id)
    if work.epoch(options.lane) == 0 and len(work.session.lanes) >= options.lanes_max:
        return refused(Code.TOO_MANY_LANES, f"the session has {len(work.session.lanes)} lanes", stream=work.stream)
    others = sum(1 for generation in work.session.open if generation.lane != options.lane)
    if others >= options.generations_max:
        return refused(Code.TOO_MANY_GENERATIONS, f"{others} generations are open", stream=work.stream)
    return None


def _open_generation(work: _Work, options: GenerationOptions) -> Generation:
    """Raise the lane's fence, end the generation that it fences off, and begin this one."""
    fence = work.raise_fence(options.lane)
    for older in work.session.open:
        if older.lane == options.lane:
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
    )
    taken = Message(work.session.birth, work.stream.incarnation, 0, generation_id=options.generation_id)
    work.changes.put(message_key(work.entry.path, options.message_id), taken)
    work.records.append(_generation_record(generation, b"insert", work.entry.txid))
    return generation


def _add_chunks(work: _Work, generation: Generation) -> Generation:
    entry = work.entry
    if not entry.body:
        return generation
    chunks = records(Page(0, 0, entry.lengths, entry.body))
    work.records.extend(_chunk_records(generation, chunks, entry.txid))
    return _replace(generation, chunks=generation.chunks + len(chunks))


def _finish(work: _Work, generation: Generation, options: GenerationOptions) -> Generation:
    told = _replace(generation, error=options.error, usage=options.usage, metadata=options.metadata)
    return work.end(told, Status(options.status), options.reason)


# -- records: State Protocol change events ------------------------------------------------------------------------


def _record(record_type: RecordType, key: str, value: bytes, headers: bytes) -> bytes:
    return b'{"type":"%b","key":%b,"value":%b,"headers":%b}' % (record_type.encode(), _json(key), value, headers)


def _headers(operation: bytes, txid: str, time_ms: int | None = None) -> bytes:
    """The time is for records whose value is the client's own and has no place for it."""
    told = b'"operation":"%b"' % operation
    if txid:
        told += b',"txid":%b' % _json(txid)
    if time_ms is not None:
        told += b',"timestamp":%b' % _json(timestamp(time_ms))
    return b"{%b}" % told


def _chunk_records(generation: Generation, chunks: Seq[bytes], txid: str) -> Iterable[bytes]:
    """The chunks as records. Ids and txid are the same for all, so everything but number and chunk is made once."""
    before = b'{"type":"chunk","key":%b:' % _json(generation.generation_id)[:-1]
    between = b'","value":{"messageId":%b,"chunk":' % _json(generation.message_id)
    behind = b'},"headers":%b}' % _headers(b"insert", txid)
    return [
        b"%b%d%b%b%b" % (before, number, between, chunk, behind)
        for number, chunk in enumerate(chunks, generation.chunks)
    ]


def _generation_record(generation: Generation, operation: bytes, txid: str) -> bytes:
    """The whole value every time: readers that merge and readers that replace see the same."""
    value: dict[str, object] = {
        "messageId": generation.message_id,
        "lane": generation.lane,
        "fence": generation.fence,
        "role": generation.role,
        "format": generation.format,
        "status": generation.status,
    }
    if generation.actor_id:
        value["actorId"] = generation.actor_id
    if generation.reason:
        value["reason"] = generation.reason
    for name, raw in (("error", generation.error), ("usage", generation.usage), ("metadata", generation.metadata)):
        if raw:
            value[name] = msgspec.Raw(raw)
    value["createdAt"] = timestamp(generation.created_ms)
    if generation.ended_ms:
        value["endedAt"] = timestamp(generation.ended_ms)
    return _record(RecordType.GENERATION, generation.generation_id, _json(value), _headers(operation, txid))


def _stop_record(generation: Generation, options: StopOptions, txid: str, now_ms: int) -> bytes:
    value = {"messageId": generation.message_id}
    if options.requested_by:
        value["requestedBy"] = options.requested_by
    if options.reason:
        value["reason"] = options.reason
    value["createdAt"] = timestamp(now_ms)
    return _record(RecordType.STOP, generation.generation_id, _json(value), _headers(b"insert", txid))


def timestamp(time_ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ms % 1000:03d}Z"
