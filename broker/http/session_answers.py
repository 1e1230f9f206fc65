"""Outcomes and rows to the answers of the session API: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.core.entry import Entry, Kind, MessageOptions
from broker.core.offset import format_offset
from broker.core.outcome import Outcome, Result
from broker.core.session import timestamp
from broker.core.state import Generation, Session, Stream
from broker.http import caching
from broker.http.problems import answer_with, problem
from broker.http.request import Request
from broker.http.response import Header, Response
from broker.http.session_routes import Target
from consumer.plain import JSONObject, decode, encode
from consumer.wire import ENDED, JSON, Code, Status


def answer(target: Target, entry: Entry, outcome: Outcome, durability: str) -> Response:
    """What the outcome of that entry tells the client."""
    if outcome.result is Result.REFUSED:
        return _refusal(target, entry, outcome)
    body: JSONObject = {"sessionId": target.session_id}
    headers: list[Header] = [(b"stream-durability", durability.encode())]
    status = 200
    match entry.kind:
        case Kind.SESSION_DELETE:
            return Response(204, headers)
        case Kind.SESSION_CREATE:
            status = 201 if outcome.result is Result.CREATED else 200
            body["created"] = outcome.result is Result.CREATED
            if outcome.session is not None:
                body["createdAt"] = timestamp(outcome.session.created_ms)
        case Kind.MESSAGE:
            status = 201 if outcome.result is Result.ACCEPTED else 200
            options = msgspec.msgpack.decode(entry.options, type=MessageOptions)
            body |= {"messageId": options.message_id} | ({"txid": entry.txid} if entry.txid else {})
        case _:
            headers += _producer_headers(outcome)
            body |= _of_generation(entry, outcome)
    if outcome.result is Result.DUPLICATE:
        body["duplicate"] = True
    if outcome.next_position is not None:
        offset = format_offset(outcome.next_position, _incarnation(outcome))
        body["offset"] = offset
        headers.append((b"stream-next-offset", offset.encode()))
    return json_answer(body, headers, status)


def session_answer(request: Request, target: Target, session: Session | None, stream: Stream | None) -> Response:
    """`GET /v1/sessions/{sid}`."""
    if session is None or stream is None:
        return not_found(Code.SESSION_NOT_FOUND, request, target)
    state: JSONObject = {
        "sessionId": target.session_id,
        "offset": stream.offset(stream.tail),
        "createdAt": timestamp(session.created_ms),
        "lastActivityAt": timestamp(session.active_ms),
        "status": "streaming" if session.open else "idle",
        "generations": [
            {
                "generationId": generation.generation_id,
                "messageId": generation.message_id,
                "lane": generation.lane,
                "fence": generation.fence,
                "status": _status(generation),
            }
            for generation in session.open
        ],
    }
    if session.metadata:
        state["metadata"] = decode(session.metadata)
    return json_answer(state)


def generation_answer(
    request: Request, target: Target, session: Session | None, generation: Generation | None
) -> Response:
    """`GET …/generations/{gid}`. `seq` and `chunks` tell a producer that comes back where to go on."""
    if session is None:
        return not_found(Code.SESSION_NOT_FOUND, request, target)
    if generation is None:
        return not_found(Code.GENERATION_NOT_FOUND, request, target)
    state: JSONObject = {
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
    if generation.reason:
        state["reason"] = generation.reason
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
    encoded = encode(body)
    content = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(encoded))]
    return Response(status, [*content, cache, *headers], encoded)


def not_found(code: Code, request: Request, target: Target) -> Response:
    facts: dict[str, Any] = {"session_id": target.session_id}
    if target.part_id:
        facts["generation_id" if target.part == "generations" else "message_id"] = target.part_id
    return answer_with(msgspec.structs.replace(problem(code, request_id=request.request_id), **facts))


def _of_generation(entry: Entry, outcome: Outcome) -> JSONObject:
    generation = outcome.generation
    if generation is None:  # an accepted write always has one
        raise TypeError(f"an outcome of kind {entry.kind} without its generation")
    if entry.kind == Kind.HEARTBEAT:
        return {"generationId": generation.generation_id, "leaseMs": generation.lease_ms}
    told: JSONObject = {
        "generationId": generation.generation_id,
        "messageId": generation.message_id,
        "lane": generation.lane,
        "fence": generation.fence,
        "status": _status(generation),
    }
    if generation.reason:
        told["reason"] = generation.reason
    if entry.kind in (Kind.CHUNKS, Kind.FINISH):
        told["seq"] = entry.seq
    return told


def _status(generation: Generation) -> str:
    """An open generation without chunks is `pending`: a reader may say that somebody is thinking."""
    if generation.status == Status.STREAMING and generation.chunks == 0:
        return Status.PENDING.value
    return generation.status


def _incarnation(outcome: Outcome) -> int:
    if outcome.generation is not None:
        return outcome.generation.incarnation
    return outcome.stream.incarnation if outcome.stream is not None else 0


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
    if entry.kind in (Kind.CHUNKS, Kind.FINISH):
        facts["received_seq"] = entry.seq
        if told.status == 409:  # noqa: PLR2004 -- Conflict
            facts["expected_seq"] = entry.seq if outcome.expected_seq is None else outcome.expected_seq
            headers.append((b"producer-expected-seq", b"%d" % facts["expected_seq"]))
            headers.append((b"producer-received-seq", b"%d" % entry.seq))
    generation = outcome.generation
    if generation is not None:
        facts["message_id"] = generation.message_id
        facts["generation_status"] = _status(generation)
        facts["reason"] = generation.reason or ("finished" if generation.status in ENDED else None)
        facts["current_epoch"] = outcome.epoch
    return answer_with(msgspec.structs.replace(told, **facts), tuple(headers))
