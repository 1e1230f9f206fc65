"""Outcomes and rows to the answers of the session API: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from broker.core.entry import NEXT_SEQ, Entry, GenerationOptions, Kind, MessageOptions
from broker.core.events import timestamp
from broker.core.offset import format_offset
from broker.core.outcome import Outcome, Result
from broker.core.state import Generation, Session, Stream
from broker.http import caching
from broker.http.problems import Form, answer_with, problem
from broker.http.request import Request
from broker.http.response import Header, Response
from broker.http.session_routes import Target
from consumer.plain import JSONObject, decode, encode
from consumer.wire import ENDED, JSON, SESSION_PATH_PREFIX, Code, Durability, Problem, Reason, Status

_OF_GENERATION: Final = frozenset({Kind.GENERATION_OPEN, Kind.CHUNKS, Kind.FINISH, Kind.STOP, Kind.HEARTBEAT})


def answer(target: Target, entry: Entry, outcome: Outcome, durability: str) -> Response:
    """What the outcome of that entry tells the client."""
    if outcome.result is Result.REFUSED:
        return _refusal(target, entry, outcome)
    headers: list[Header] = [(b"stream-durability", durability.encode())]
    if entry.kind == Kind.SESSION_DELETE:
        return Response(204, headers)
    if entry.kind == Kind.SESSION_FORK:
        target = Target(entry.path.removeprefix(SESSION_PATH_PREFIX))
    body: JSONObject = {"sessionId": target.session_id, **_told_of(entry, outcome)}
    if entry.kind in _OF_GENERATION:
        headers += _producer_headers(outcome)
    if outcome.result is Result.DUPLICATE:
        body["duplicate"] = True
    if outcome.next_position is not None:
        offset = _offset(outcome, outcome.next_position)
        body["offset"] = offset
        headers.append((b"stream-next-offset", offset.encode()))
    added = outcome.result is Result.ACCEPTED and entry.kind in (Kind.MESSAGE, Kind.RECORD)
    return json_answer(body, headers, 201 if added or outcome.result is Result.CREATED else 200)


def _told_of(entry: Entry, outcome: Outcome) -> JSONObject:
    """What is told of this kind of entry only."""
    txid: JSONObject = {"txid": entry.txid} if entry.txid else {}
    match entry.kind:
        case Kind.SESSION_CREATE | Kind.IMPORT if outcome.session is not None:
            created_at = timestamp(outcome.session.created_ms)
            return {"created": outcome.result is Result.CREATED, "createdAt": created_at}
        case Kind.SESSION_STOP:
            return {"stopped": [generation.generation_id for generation in outcome.stopped]}
        case Kind.SESSION_FORK if outcome.stream is not None:
            return _fork_facts(outcome.stream)
        case Kind.RECORD:
            return txid
        case Kind.MESSAGE:
            options = msgspec.msgpack.decode(entry.options, type=MessageOptions)
            return {"messageId": options.message_id, **txid}
        case kind if kind in _OF_GENERATION:
            return _of_generation(entry, outcome)
    return {}


def accepted_answer(target: Target, entry: Entry, generation: Generation | None) -> Response:
    """202: a batch that is not durable yet. `generation` is its generation, where that is known already.

    Else this opens it, and says which message; but where it continues another, that is known only to the log.
    """
    headers = [(b"preference-applied", b"respond-async"), (b"stream-durability", Durability.ACCEPTED.encode())]
    body: JSONObject = {"sessionId": target.session_id, "generationId": target.part_id, "seq": entry.seq}
    if generation is None:
        message_id = msgspec.msgpack.decode(entry.options, type=GenerationOptions).message_id
    else:
        message_id = generation.message_id
    if message_id:
        body["messageId"] = message_id
    return json_answer(body, headers, 202)


def lost_answer(target: Target, entry: Entry, generation: Generation | None, first_seq: int, last_seq: int) -> Response:
    """What a finish is told behind accepted batches that are lost. As every 409 that is no gap names its own seq."""
    told = msgspec.structs.replace(
        problem(Code.LOST_CHUNKS, f"batches {first_seq} to {last_seq}", request_id=entry.request_id),
        session_id=target.session_id,
        generation_id=target.part_id,
        first_seq=first_seq,
        last_seq=last_seq,
    )
    if generation is not None:
        told = msgspec.structs.replace(
            told,
            message_id=generation.message_id,
            generation_status=Status.FAILED.value,
            reason=Reason.LOST_CHUNKS.value,
        )
    if entry.seq == NEXT_SEQ:
        return answer_with(told)
    told = msgspec.structs.replace(told, expected_seq=entry.seq, received_seq=entry.seq)
    seq = b"%d" % entry.seq
    return answer_with(told, ((b"producer-expected-seq", seq), (b"producer-received-seq", seq)))


def session_answer(request: Request, target: Target, session: Session | None, stream: Stream | None) -> Response:
    """`GET /v1/sessions/{sid}`."""
    if session is None or stream is None:
        return not_found(Code.SESSION_NOT_FOUND, request, target)
    return json_answer(summary(target.session_id, session, stream))


def summary(session_id: str, session: Session, stream: Stream) -> JSONObject:
    """A session in a few words: what runs in it, and since when it has been quiet."""
    told: JSONObject = {
        "sessionId": session_id,
        "offset": stream.offset(stream.tail),
        "createdAt": timestamp(session.created_ms),
        "lastActivityAt": timestamp(session.active_ms),
        "status": "streaming" if session.open else "idle",
        "generations": [_open_generation(generation) for generation in session.open],
    }
    if session.metadata:
        told["metadata"] = decode(session.metadata)
    told |= _fork_facts(stream)
    if session.reset_ms:
        told["resetAt"] = timestamp(session.reset_ms)
        told["resetReason"] = session.reset_reason or None
    return told


def _fork_facts(stream: Stream) -> JSONObject:
    if stream.source is None or not stream.source[0].startswith(SESSION_PATH_PREFIX):
        return {}  # also an import: where its records were put before is nobody's business
    return {
        "forkedFrom": stream.source[0].removeprefix(SESSION_PATH_PREFIX),
        "forkOffset": stream.offset(stream.begin),
    }


def _open_generation(generation: Generation) -> JSONObject:
    return {
        "generationId": generation.generation_id,
        "messageId": generation.message_id,
        "lane": generation.lane,
        "fence": generation.fence,
        "status": _status(generation),
    }


def generation_answer(
    request: Request, target: Target, session: Session | None, generation: Generation | None
) -> Response:
    """`GET …/generations/{gid}`. `seq` and `chunks` tell a producer that comes back where to go on."""
    if session is None:
        return not_found(Code.SESSION_NOT_FOUND, request, target)
    if generation is None:
        return not_found(Code.GENERATION_NOT_FOUND, request, target)
    state: JSONObject = {
        "sessionId": target.session_id,
        "generationId": generation.generation_id,
        "messageId": generation.message_id,
        "lane": generation.lane,
        "fence": generation.fence,
        "status": _status(generation),
        "format": generation.format,
        "role": generation.role,
        "chunks": generation.chunks,
        "seq": generation.sequence.seq,
        "leaseMs": generation.lease_ms,
        "createdAt": timestamp(generation.created_ms),
    }
    for name, text in (
        ("continues", generation.continues),
        ("continuedBy", generation.continued_by),
        ("reason", generation.reason),
    ):
        if text:
            state[name] = text
    for name, raw in (("error", generation.error), ("usage", generation.usage), ("metadata", generation.metadata)):
        if raw:
            state[name] = decode(raw)
    if generation.ended_ms:
        state["endedAt"] = timestamp(generation.ended_ms)
    return json_answer(state)


def json_answer(
    body: JSONObject, headers: Sequence[Header] = (), status: int = 200, cache: Header = caching.NO_STORE
) -> Response:
    """A JSON answer. Half a surrogate pair in it stays an escape."""
    return encoded_answer(encode(body), headers, status, cache)


def encoded_answer(
    encoded: bytes, headers: Sequence[Header] = (), status: int = 200, cache: Header = caching.NO_STORE
) -> Response:
    """An answer that is JSON already."""
    content = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(encoded))]
    return Response(status, [*content, cache, *headers], encoded)


def not_found(code: Code, request: Request, target: Target) -> Response:
    return about(target)(problem(code, request_id=request.request_id), ())


def about(target: Target, message_id: str = "") -> Form:
    """How a problem is told that a request for this target ran into: with the ids of the URL, and what is known."""
    ids = {"session_id": target.session_id, **_id_of_part(target)}
    if message_id:
        ids["message_id"] = message_id

    def tell(told: Problem, headers: tuple[Header, ...]) -> Response:
        return answer_with(msgspec.structs.replace(told, **ids), headers)

    return tell


def _id_of_part(target: Target) -> dict[str, str]:
    name = {"generations": "generation_id", "messages": "message_id"}.get(target.part)
    return {name: target.part_id} if name and target.part_id else {}


def _of_generation(entry: Entry, outcome: Outcome) -> JSONObject:
    generation = outcome.generation
    if generation is None:  # an accepted write always has one
        raise TypeError(f"an outcome of kind {entry.kind} without its generation")
    if entry.kind == Kind.HEARTBEAT:
        ids = {"generationId": generation.generation_id, "messageId": generation.message_id}
        return {**ids, "leaseMs": generation.lease_ms}
    told: JSONObject = {
        "generationId": generation.generation_id,
        "messageId": generation.message_id,
        "lane": generation.lane,
        "fence": generation.fence,
        "status": _status(generation),
    }
    if generation.reason:
        told["reason"] = generation.reason
    if generation.continues:
        told["continues"] = generation.continues
    if entry.kind == Kind.GENERATION_OPEN:
        told["leaseMs"] = generation.lease_ms
    if entry.kind in (Kind.CHUNKS, Kind.FINISH):
        told["seq"] = outcome.seq if entry.seq == NEXT_SEQ else entry.seq
    return told


def _status(generation: Generation) -> str:
    """An open generation without chunks is `pending`: a reader may say that somebody is thinking."""
    if generation.status == Status.STREAMING and generation.chunks == 0:
        return Status.PENDING.value
    return generation.status


def _offset(outcome: Outcome, position: int) -> str:
    """Of the life that the generation wrote in: a reset may have begun another since."""
    generation, stream = outcome.generation, outcome.stream
    if generation is not None and (stream is None or generation.incarnation != stream.incarnation):
        return format_offset(position, generation.incarnation)
    return "" if stream is None else stream.offset(position)


def _producer_headers(outcome: Outcome) -> list[Header]:
    headers: list[Header] = []
    if outcome.epoch is not None:
        headers.append((b"producer-epoch", b"%d" % outcome.epoch))
    if outcome.seq is not None and outcome.seq >= 0:
        headers.append((b"producer-seq", b"%d" % outcome.seq))
    return headers


def _refusal(target: Target, entry: Entry, outcome: Outcome) -> Response:
    """A refusal with its facts. A 409 that is no gap names the seq received as the expected one."""
    code = outcome.code or Code.INTERNAL
    told = problem(code, outcome.detail, request_id=entry.request_id)
    facts: dict[str, Any] = {"session_id": target.session_id}
    if target.part == "generations":
        facts["generation_id"] = target.part_id
    headers = _producer_headers(outcome)
    if entry.kind in (Kind.CHUNKS, Kind.FINISH) and entry.seq != NEXT_SEQ:
        facts["received_seq"] = entry.seq
        if told.status == 409:  # noqa: PLR2004 -- Conflict
            facts["expected_seq"] = entry.seq if outcome.expected_seq is None else outcome.expected_seq
            headers.append((b"producer-expected-seq", b"%d" % facts["expected_seq"]))
            headers.append((b"producer-received-seq", b"%d" % entry.seq))
    generation = outcome.generation
    if generation is not None and generation.generation_id != facts.get("generation_id"):
        facts["generation_id"] = generation.generation_id  # the one in the way
    if generation is not None:
        facts["message_id"] = generation.message_id
        facts["generation_status"] = _status(generation)
        facts["reason"] = generation.reason or ("finished" if generation.status in ENDED else None)
        facts["current_epoch"] = outcome.epoch
    return answer_with(msgspec.structs.replace(told, **facts), tuple(headers))
