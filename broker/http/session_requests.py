"""Requests of the session API to entries: pure, and the only way in."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec

from broker import limits
from broker.core.entry import (
    NEXT_SEQ,
    Entry,
    GenerationOptions,
    Kind,
    MessageOptions,
    RecordOptions,
    ResetOptions,
    SessionOptions,
    SessionStopOptions,
    StopOptions,
    body_digest,
    encode_options,
)
from broker.core.page import LENGTH_BYTES, pack_lengths
from broker.http.problems import BadRequest
from broker.http.records import split
from broker.http.request import Headers, Request, parameters_of
from broker.http.session_fields import (
    DECIMAL,
    fields,
    id_field,
    id_parameter,
    json_object,
    lease_ms,
    message_digest,
    message_id_of,
    on_conflict,
    optional_fields,
    optional_object,
    require_json,
    short_text,
    write_parameters,
)
from broker.http.session_routes import Target, require_id
from broker.http.streams import traceparent_of
from consumer.fold import FORMATS
from consumer.plain import encode
from consumer.wire import ENDED, SEQ_MAX, TXID, Code, RecordType, Status

_OPENING_FIELDS: Final = frozenset({"messageId", "lane", "format", "role", "actorId", "onConflict", "continues"})
_TXID: Final = TXID.encode()
FORMAT_DEFAULT: Final = "ai-sdk-ui-message-stream"


class _Creation(msgspec.Struct):
    message: msgspec.Raw


_first_message: Final = msgspec.json.Decoder(_Creation).decode


def require_no_parameters(request: Request) -> None:
    """Raise BadRequest (INVALID_PARAMETER) for a read with parameters.

    None is known, and an answer without what was asked for would pass for one with it.
    """
    if parameters_of(request.query):
        raise BadRequest(Code.INVALID_PARAMETER, "reads of a session take no parameters")


def entry_of(request: Request, target: Target, body: bytes) -> Entry:
    """The entry that a write asks for. Raises BadRequest; then the request means nothing and changes nothing."""
    parameters = write_parameters(request.query)
    match request.method, target.part, target.action:
        case "PUT", "", _:
            return _create(request, target, body, parameters)
        case "DELETE", "", _:
            return _entry(Kind.SESSION_DELETE, request, target, parameters)
        case "PUT", "generations", _:
            return _open_generation(request, target, body, parameters)
        case "POST", "reset", _:
            return _reset(request, target, body, parameters)
        case "POST", "stop", _:
            return _stop_session(request, target, body, parameters)
        case "POST", "records", _:
            return _record(request, target, body, parameters)
        case "POST", "messages", _:
            return _message(request, target, body, parameters)
        case "POST", _, "chunks":
            return _chunks(request, target, body, parameters)
        case "POST", _, "finish":
            return _finish(request, target, body, parameters)
        case _:
            return _stop_or_heartbeat(request, target, body, parameters)


def _entry(
    kind: Kind,
    request: Request,
    target: Target,
    parameters: dict[str, str],
    *,
    options: msgspec.Struct | bytes = b"",
    seq: int = 0,
    digest: bytes = b"",
    records: tuple[bytes, bytes] = (b"", b""),
) -> Entry:
    lengths, body = records
    return Entry(
        kind,
        target.path,
        seq=seq,
        digest=digest,
        txid=_txid(request, parameters),
        request_id=request.request_id,
        traceparent=traceparent_of(request.headers),
        options=options if isinstance(options, bytes) else encode_options(options),
        lengths=lengths,
        body=body,
    )


def _txid(request: Request, parameters: dict[str, str]) -> str:
    """What the writer calls this write: a parameter or, where the query belongs to the batch, a header."""
    header = ""
    if _TXID in request.headers:
        header = request.headers[_TXID].decode("latin-1")
    if header:
        require_id(header, "Txid", Code.INVALID_HEADER)
    return id_parameter(parameters, "txid", header)


def _create(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    wanted = optional_fields(request, body, {"message", "metadata"})
    metadata = optional_object(wanted, "metadata")
    metadata_digest = message_digest(wanted["metadata"]) if metadata else b""
    if wanted.get("message") is None:
        options = SessionOptions(metadata, metadata_digest=metadata_digest)
        return _entry(Kind.SESSION_CREATE, request, target, parameters, options=options)
    message = wanted["message"]
    message_id = message_id_of(message)
    record = _as_spelled(body, message)
    return _entry(
        Kind.SESSION_CREATE,
        request,
        target,
        parameters,
        options=SessionOptions(metadata, message_id, metadata_digest),
        digest=message_digest(message),
        records=(pack_lengths([len(record)]), record),
    )


def _as_spelled(body: bytes, message: Any) -> bytes:
    """The record of a first message: as its writer spelled it, like every record, so that no number is rounded."""
    try:
        return bytes(_first_message(body).message)
    except msgspec.DecodeError:  # half a surrogate pair in it, which `encode` knows to keep
        return encode(message)


def _message(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    require_json(request.headers)
    message = json_object(body)
    options = MessageOptions(message_id_of(message))
    digest = message_digest(message)
    return _entry(Kind.MESSAGE, request, target, parameters, options=options, digest=digest, records=split(body))


def _chunks(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    require_json(request.headers)
    return Batches(request, target, parameters).batch(seq_of(request.headers), body)


class Batches:
    """Batches of one generation out of one request: what all of them say alike is looked at once.

    Raises BadRequest, as does `batch`.
    """

    __slots__ = ("_later", "_parameters", "_path", "_request_id", "_target", "_traceparent", "_txid")

    def __init__(self, request: Request, target: Target, parameters: dict[str, str]) -> None:
        self._target, self._parameters = target, parameters
        self._path = target.path
        self._later = _options_of_later(target.part_id)
        self._txid = _txid(request, parameters)
        self._request_id = request.request_id
        self._traceparent = traceparent_of(request.headers)

    def batch(self, seq: int, body: bytes) -> Entry:
        """Batch `seq`: `body` is a chunk, or a JSON array of chunks."""
        if not body:
            raise BadRequest(Code.EMPTY_BODY, "a batch has at least one chunk")
        lengths, data = split(body)
        if not lengths:
            raise BadRequest(Code.EMPTY_ARRAY, "a batch has at least one chunk")
        if len(lengths) > limits.BATCH_CHUNKS_MAX * LENGTH_BYTES:
            raise BadRequest(Code.BODY_TOO_LARGE, f"more than {limits.BATCH_CHUNKS_MAX} chunks")
        if seq > 0:
            options, digest = self._later, body_digest(data)
        else:
            opening = _generation_options(self._target, seq, self._parameters)
            options, digest = encode_options(opening), body_digest(_opening(opening, seq) + data)
        return Entry(
            Kind.CHUNKS,
            self._path,
            seq=seq,
            digest=digest,
            txid=self._txid,
            request_id=self._request_id,
            traceparent=self._traceparent,
            options=options,
            lengths=lengths,
            body=data,
        )


@lru_cache(maxsize=4096)
def _options_of_later(generation_id: str) -> bytes:
    """Of batches that open nothing: they need no more than the id."""
    return encode_options(GenerationOptions(generation_id))


def _finish(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    if body:
        require_json(request.headers)
    return finish_of(request, target, parameters, seq_of(request.headers), body)


def finish_of(request: Request, target: Target, parameters: dict[str, str], seq: int, body: bytes) -> Entry:
    """The end of a generation, its batch `seq`: `body` is a JSON object, or empty. Raises BadRequest."""
    told = fields(body, {"status", "reason", "error", "usage", "metadata"}) if body else {}
    status = told.get("status", Status.COMPLETE.value)
    if not isinstance(status, str) or status not in ENDED:
        raise BadRequest(Code.INVALID_BODY, "status is complete, failed or aborted")
    opening = _generation_options(target, seq, parameters)
    options = msgspec.structs.replace(
        opening,
        status=status,
        reason=short_text(told, "reason"),
        error=encode(told["error"]) if told.get("error") is not None else b"",
        usage=optional_object(told, "usage"),
        metadata=optional_object(told, "metadata"),
    )
    # No chunks have this digest, so neither passes for a copy of the other.
    digest = body_digest(b"finish\0" + _opening(opening, seq) + body)
    return _entry(Kind.FINISH, request, target, parameters, options=options, seq=seq, digest=digest)


def heartbeat_of(request: Request, target: Target) -> Entry:
    """A renewal of the lease of the generation that `target` names."""
    return _entry(Kind.HEARTBEAT, request, target, {}, options=StopOptions(target.part_id))


def _open_generation(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    told = optional_fields(request, body, _OPENING_FIELDS | {"metadata", "leaseMs"})
    wanted = {name: _opening_text(name, told[name]) for name in told.keys() - {"metadata"} if told[name] is not None}
    try:
        opening = _generation_options(target, 0, wanted)
    except BadRequest as error:
        code = Code.INVALID_BODY if error.code is Code.INVALID_PARAMETER else error.code
        raise BadRequest(code, error.detail) from None
    options = msgspec.structs.replace(opening, metadata=optional_object(told, "metadata"))
    return _entry(Kind.GENERATION_OPEN, request, target, parameters, options=options)


def _opening_text(name: str, value: object) -> str:
    """A field of the body as the query of a first batch has it."""
    if name == "leaseMs" and isinstance(value, float) and value.is_integer():
        return str(int(value))  # to JSON, 30000.0 is an integer
    if name == "leaseMs" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name == "leaseMs" or not isinstance(value, str):
        raise BadRequest(Code.INVALID_BODY, f"{name} is {'an integer' if name == 'leaseMs' else 'a string'}")
    return value


def _reset(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    told = optional_fields(request, body, {"reason"})
    return _entry(Kind.SESSION_RESET, request, target, parameters, options=ResetOptions(short_text(told, "reason")))


def _stop_session(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    told = optional_fields(request, body, {"lane", "requestedBy", "reason"})
    options = SessionStopOptions(id_field(told, "lane"), short_text(told, "requestedBy"), short_text(told, "reason"))
    return _entry(Kind.SESSION_STOP, request, target, parameters, options=options)


_UPSERTED: Final = (RecordType.PRESENCE.value, RecordType.APPROVAL.value, RecordType.SETTLEMENT.value)


def _record(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    require_json(request.headers)
    told = fields(body, {"type", "key", "value", "txid"})
    if told.get("type") not in _UPSERTED:
        raise BadRequest(Code.INVALID_BODY, f"type is one of {', '.join(_UPSERTED)}")
    key, value, txid = short_text(told, "key"), told.get("value"), id_field(told, "txid")
    if not key or not isinstance(value, dict):
        raise BadRequest(Code.INVALID_BODY, "a record has a key and a value that is a JSON object")
    if txid:
        parameters = {**parameters, "txid": txid}
    record = encode(value)
    return _entry(
        Kind.RECORD,
        request,
        target,
        parameters,
        options=RecordOptions(str(told["type"]), key),
        records=(pack_lengths([len(record)]), record),
    )


def _stop_or_heartbeat(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    told = optional_fields(request, body, {"requestedBy", "reason"})
    options = StopOptions(target.part_id, short_text(told, "requestedBy"), short_text(told, "reason"))
    kind = Kind.STOP if target.action == "stop" else Kind.HEARTBEAT
    return _entry(kind, request, target, parameters, options=options)


def _generation_options(target: Target, seq: int, parameters: dict[str, str]) -> GenerationOptions:
    """What batch 0 opens; later batches need no more than the id."""
    if seq > 0:
        return GenerationOptions(target.part_id)
    continues = id_parameter(parameters, "continues", "")
    chunk_format = parameters.get("format", "" if continues else FORMAT_DEFAULT)
    if chunk_format not in FORMATS and not (continues and "format" not in parameters):
        raise BadRequest(Code.UNKNOWN_FORMAT, f"formats: {', '.join(sorted(FORMATS))}")
    return GenerationOptions(
        target.part_id,
        message_id=id_parameter(parameters, "messageId", "" if continues or seq == NEXT_SEQ else target.part_id),
        lane=id_parameter(parameters, "lane", "" if continues else "main"),
        format=chunk_format,
        role=id_parameter(parameters, "role", "assistant"),
        actor_id=id_parameter(parameters, "actorId", ""),
        lease_ms=lease_ms(parameters),
        generations_max=limits.GENERATIONS_OPEN_MAX,
        lanes_max=limits.LANES_MAX,
        continues=continues,
        yields=on_conflict(parameters),
        frees_lanes=True,
    )


def _opening(options: GenerationOptions, seq: int) -> bytes:
    """What opens a generation is part of batch 0: a copy that says otherwise is another batch.

    Only what the client chose: a copy may reach a broker that was restarted with other limits.
    """
    if seq != 0:
        return b""
    chosen = (options.message_id, options.lane, options.format, options.role, options.actor_id, options.lease_ms)
    if options.continues or options.yields:
        return msgspec.msgpack.encode((*chosen, options.continues, options.yields))
    return msgspec.msgpack.encode(chosen)


def seq_of(headers: Headers) -> int:
    """`Producer-Seq`. Raises BadRequest (INVALID_PRODUCER)."""
    text = headers.get(b"producer-seq")
    if text is None:
        raise BadRequest(Code.INVALID_PRODUCER, "Producer-Seq is missing: it counts the batches of a generation from 0")
    if DECIMAL.fullmatch(text) is None or int(text) > SEQ_MAX:
        raise BadRequest(Code.INVALID_PRODUCER, "Producer-Seq is a decimal integer from 0 to 2^53 - 1")
    return int(text)
