"""Flat routes for writers that know no batches: `…/chunks`, `…/chunks/batch`, `…/generations/finish`.

A thin layer over generations: the same entries, with the generation named in the body. Without a `Producer-Seq` the
broker numbers the batch, under the session's order. Nothing tells a copy of such a batch from the next one: a write
that was sent again after its answer was lost may be there twice. Only a finish is one, however often it is sent.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from broker.core.entry import NEXT_SEQ, Entry, Kind
from broker.core.outcome import Outcome
from broker.errors import BrokerError
from broker.http.problems import BadRequest, answer_with, problem
from broker.http.request import Request
from broker.http.response import Response
from broker.http.session_fields import json_object, require_json, short_text, write_parameters
from broker.http.session_requests import Batches, finish_of, seq_of
from broker.http.session_routes import Target, require_id
from consumer.plain import JSONObject, encode
from consumer.wire import Code

_BAD_REQUEST: Final = 400
_ANOTHER_ONE: Final = frozenset({Code.FENCED, Code.GENERATION_NOT_FOUND, Code.MESSAGE_EXISTS})
"""What these routes tell as `GENERATION_MISMATCH`: the generation that the writer means is not the one that runs."""


class _Spelled(msgspec.Struct):
    """The chunks of a body as their writer spelled them."""

    chunk: msgspec.Raw = msgspec.Raw()
    chunks: msgspec.Raw = msgspec.Raw()


_spelled: Final = msgspec.json.Decoder(_Spelled).decode


def is_flat(target: Target) -> bool:
    """Whether a POST to this goes here."""
    return target.part == "chunks" or (target.action == "finish" and not target.part_id)


def entry_of(request: Request, target: Target, body: bytes) -> tuple[Target, Entry]:
    """The generation that is written, and the entry. Raises BadRequest; INVALID_BODY for whatever makes no sense."""
    try:
        return _entry_of(request, target, body)
    except BadRequest as error:
        if problem(error.code).status == _BAD_REQUEST:
            raise BadRequest(Code.INVALID_BODY, error.detail or error.code.value) from None
        raise


def _entry_of(request: Request, target: Target, body: bytes) -> tuple[Target, Entry]:
    require_json(request.headers)
    told = json_object(body)
    generation_id, message_id = short_text(told, "generationId"), short_text(told, "messageId")
    require_id(generation_id, "generationId", Code.INVALID_BODY)
    parameters = write_parameters(request.query) | ({"messageId": message_id} if message_id else {})
    seq = seq_of(request.headers) if b"producer-seq" in request.headers else NEXT_SEQ
    if target.part == "generations":
        named = Target(target.session_id, "generations", generation_id, "finish")
        rest = {name: value for name, value in told.items() if name not in ("generationId", "messageId")}
        return named, finish_of(request, named, parameters, seq, encode(rest) if rest else b"")
    named = Target(target.session_id, "generations", generation_id, "chunks")
    return named, Batches(request, named, parameters).batch(seq, _chunks(target, told, body))


def _chunks(target: Target, told: JSONObject, body: bytes) -> bytes:
    """The JSON array of chunks that a body carries."""
    name = "chunks" if target.action == "batch" else "chunk"
    if told.keys() - {"generationId", "messageId", name} or name not in told:
        raise BadRequest(Code.INVALID_BODY, f"a generationId, perhaps a messageId, and {name}")
    if name == "chunks" and not isinstance(told[name], list):
        raise BadRequest(Code.INVALID_BODY, "chunks is an array")
    try:
        spelled = bytes(getattr(_spelled(body), name))
    except msgspec.DecodeError:  # half a surrogate pair in it, which `encode` knows to keep
        spelled = encode(told[name])
    return spelled if name == "chunks" else b"[%b]" % spelled


def seen_by_flat_writers(outcome: Outcome) -> Outcome:
    """A refusal in the words of these routes."""
    if outcome.code not in _ANOTHER_ONE:
        return outcome
    detail = outcome.detail or "there is no such generation"
    return msgspec.structs.replace(outcome, code=Code.GENERATION_MISMATCH, detail=detail)


def failure(entry: Entry, target: Target, error: BrokerError) -> Response:
    """What a writer is told when the broker could not do its part, or does not know whether it did."""
    code = Code.FINISH_FAILED if entry.kind == Kind.FINISH else Code.WRITE_FAILED
    told = problem(code, request_id=entry.request_id, retry_after_ms=error.retry_after_ms)
    facts: dict[str, Any] = {"session_id": target.session_id, "generation_id": target.part_id}
    return answer_with(msgspec.structs.replace(told, **facts))
