"""Requests of the session API to entries: pure, and the only way in."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from broker import limits
from broker.core.entry import (
    Entry,
    GenerationOptions,
    Kind,
    MessageOptions,
    SessionOptions,
    StopOptions,
    body_digest,
    encode_options,
)
from broker.core.page import pack_lengths, unpack_lengths
from broker.core.state import media_type
from broker.http.problems import BadRequest
from broker.http.records import split
from broker.http.request import Headers, Request, parameters_of
from broker.http.session_routes import Target, require_id
from broker.http.streams import traceparent_of
from consumer.fold import FORMATS
from consumer.plain import JSONObject, NotJSON, decode, encode
from consumer.wire import ENDED, JSON, SEQ_MAX, Code, Status

_DECIMAL: Final = re.compile(rb"0|[1-9][0-9]{0,15}")
_PARAMETERS: Final = frozenset({"messageId", "lane", "format", "role", "actorId", "leaseMs", "txid"})
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
    options: msgspec.Struct | None = None,
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
        txid=_id_parameter(parameters, "txid", ""),
        request_id=request.request_id,
        traceparent=traceparent_of(request.headers),
        options=b"" if options is None else encode_options(options),
        lengths=lengths,
        body=body,
    )


def _create(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    wanted = _told(request, body, {"message", "metadata"})
    metadata = _optional_object(wanted, "metadata")
    if wanted.get("message") is None:
        return _entry(Kind.SESSION_CREATE, request, target, parameters, options=SessionOptions(metadata))
    message = wanted["message"]
    message_id = _message_id(message)
    record = _as_spelled(body, message)
    return _entry(
        Kind.SESSION_CREATE,
        request,
        target,
        parameters,
        options=SessionOptions(metadata, message_id),
        digest=_message_digest(message),
        records=(pack_lengths([len(record)]), record),
    )


def _as_spelled(body: bytes, message: Any) -> bytes:
    """The record of a first message: as its writer spelled it, like every record, so that no number is rounded."""
    try:
        return bytes(_first_message(body).message)
    except msgspec.DecodeError:  # half a surrogate pair in it, which `encode` knows to keep
        return encode(message)


def _message(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    _require_json(request.headers)
    message = _object(body)
    options = MessageOptions(_message_id(message))
    digest = _message_digest(message)
    return _entry(Kind.MESSAGE, request, target, parameters, options=options, digest=digest, records=split(body))


def _chunks(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    _require_json(request.headers)
    return batch_of(request, target, parameters, seq_of(request.headers), body)


def batch_of(request: Request, target: Target, parameters: dict[str, str], seq: int, body: bytes) -> Entry:
    """Batch `seq` of a generation: `body` is a chunk, or a JSON array of chunks. Raises BadRequest."""
    if not body:
        raise BadRequest(Code.EMPTY_BODY, "a batch has at least one chunk")
    lengths, data = split(body)
    if not lengths:
        raise BadRequest(Code.EMPTY_ARRAY, "a batch has at least one chunk")
    if len(unpack_lengths(lengths)) > limits.BATCH_CHUNKS_MAX:
        raise BadRequest(Code.BODY_TOO_LARGE, f"more than {limits.BATCH_CHUNKS_MAX} chunks")
    options = _generation_options(target, seq, parameters)
    digest = body_digest(_opening(options, seq) + data)
    return _entry(
        Kind.CHUNKS, request, target, parameters, options=options, seq=seq, digest=digest, records=(lengths, data)
    )


def _finish(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    if body:
        _require_json(request.headers)
    return finish_of(request, target, parameters, seq_of(request.headers), body)


def finish_of(request: Request, target: Target, parameters: dict[str, str], seq: int, body: bytes) -> Entry:
    """The end of a generation, its batch `seq`: `body` is a JSON object, or empty. Raises BadRequest."""
    told = _fields(body, {"status", "reason", "error", "usage", "metadata"}) if body else {}
    status = told.get("status", Status.COMPLETE.value)
    if not isinstance(status, str) or status not in ENDED:
        raise BadRequest(Code.INVALID_BODY, "status is complete, failed or aborted")
    opening = _generation_options(target, seq, parameters)
    options = msgspec.structs.replace(
        opening,
        status=status,
        reason=_short_text(told, "reason"),
        error=encode(told["error"]) if told.get("error") is not None else b"",
        usage=_optional_object(told, "usage"),
        metadata=_optional_object(told, "metadata"),
    )
    # No chunks have this digest, so neither passes for a copy of the other.
    digest = body_digest(b"finish\0" + _opening(opening, seq) + body)
    return _entry(Kind.FINISH, request, target, parameters, options=options, seq=seq, digest=digest)


def heartbeat_of(request: Request, target: Target) -> Entry:
    """A renewal of the lease of the generation that `target` names."""
    return _entry(Kind.HEARTBEAT, request, target, {}, options=StopOptions(target.part_id))


def _stop_or_heartbeat(request: Request, target: Target, body: bytes, parameters: dict[str, str]) -> Entry:
    told = _told(request, body, {"requestedBy", "reason"})
    options = StopOptions(target.part_id, _short_text(told, "requestedBy"), _short_text(told, "reason"))
    kind = Kind.STOP if target.action == "stop" else Kind.HEARTBEAT
    return _entry(kind, request, target, parameters, options=options)


def _generation_options(target: Target, seq: int, parameters: dict[str, str]) -> GenerationOptions:
    """What batch 0 opens; later batches need no more than the id."""
    if seq != 0:
        return GenerationOptions(target.part_id)
    chunk_format = parameters.get("format", FORMAT_DEFAULT)
    if chunk_format not in FORMATS:
        raise BadRequest(Code.UNKNOWN_FORMAT, f"formats: {', '.join(sorted(FORMATS))}")
    return GenerationOptions(
        target.part_id,
        message_id=_id_parameter(parameters, "messageId", target.part_id),
        lane=_id_parameter(parameters, "lane", "main"),
        format=chunk_format,
        role=_id_parameter(parameters, "role", "assistant"),
        actor_id=_id_parameter(parameters, "actorId", ""),
        lease_ms=_lease_ms(parameters),
        generations_max=limits.GENERATIONS_OPEN_MAX,
        lanes_max=limits.LANES_MAX,
    )


def _opening(options: GenerationOptions, seq: int) -> bytes:
    """What opens a generation is part of batch 0: a copy that says otherwise is another batch.

    Only what the client chose: a copy may reach a broker that was restarted with other limits.
    """
    if seq != 0:
        return b""
    chosen = (options.message_id, options.lane, options.format, options.role, options.actor_id, options.lease_ms)
    return msgspec.msgpack.encode(chosen)


def write_parameters(query: bytes) -> dict[str, str]:
    """The query of a write. Raises BadRequest (INVALID_PARAMETER) for a parameter that no write has."""
    parameters = parameters_of(query)
    unknown = parameters.keys() - _PARAMETERS
    if unknown:  # a misspelt messageId must not open a generation under another id
        raise BadRequest(Code.INVALID_PARAMETER, f"unknown: {', '.join(sorted(unknown))[:200]}")
    return parameters


def _id_parameter(parameters: dict[str, str], name: str, default: str) -> str:
    if name not in parameters:
        return default
    require_id(parameters[name], name, Code.INVALID_PARAMETER)
    return parameters[name]


def _lease_ms(parameters: dict[str, str]) -> int:
    text = parameters.get("leaseMs")
    if text is None:
        return limits.LEASE_MS
    lowest, highest = limits.LEASE_MS_MIN, limits.LEASE_MS_MAX
    if _DECIMAL.fullmatch(text.encode()) is None or not lowest <= int(text) <= highest:
        raise BadRequest(Code.INVALID_PARAMETER, f"leaseMs: {lowest} to {highest}")
    return int(text)


def seq_of(headers: Headers) -> int:
    """`Producer-Seq`. Raises BadRequest (INVALID_PRODUCER)."""
    text = headers.get(b"producer-seq")
    if text is None:
        raise BadRequest(Code.INVALID_PRODUCER, "Producer-Seq is missing: it counts the batches of a generation from 0")
    if _DECIMAL.fullmatch(text) is None or int(text) > SEQ_MAX:
        raise BadRequest(Code.INVALID_PRODUCER, "Producer-Seq is a decimal integer from 0 to 2^53 - 1")
    return int(text)


def _require_json(headers: Headers) -> None:
    told = headers.get(b"content-type", b"")
    if told != b"application/json" and media_type(told.decode("latin-1")) != JSON:
        raise BadRequest(Code.INVALID_CONTENT_TYPE, f"the body is {JSON}")


def _told(request: Request, body: bytes, names: set[str]) -> JSONObject:
    """What a body that may be left out says, in fields of these names."""
    if not body:
        return {}
    _require_json(request.headers)
    return _fields(body, names)


def _fields(body: bytes, names: set[str]) -> JSONObject:
    """The fields, of these names, of the JSON object that a body is."""
    told = _object(body)
    if not told.keys() <= names:
        unknown = ", ".join(sorted(told.keys() - names))
        raise BadRequest(Code.INVALID_BODY, f"unknown fields: {_printable(unknown)}")
    return told


def _object(body: bytes) -> JSONObject:
    """The JSON object that a body is."""
    if not body.strip():
        raise BadRequest(Code.EMPTY_BODY)
    split(body)  # the bounds that hold for every record
    try:
        value = decode(body)
    except NotJSON as error:
        raise BadRequest(Code.INVALID_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise BadRequest(Code.INVALID_BODY, "a JSON object is expected")
    return value


def _printable(text: str) -> str:
    """The start of a client's text, fit for an error's detail: half a surrogate pair cannot be written as UTF-8."""
    return text[:200].encode(errors="replace").decode()


def _optional_object(told: JSONObject, name: str) -> bytes:
    value = told.get(name)
    if value is None:
        return b""
    if not isinstance(value, dict):
        raise BadRequest(Code.INVALID_BODY, f"{name} is a JSON object")
    return encode(value)


def _short_text(told: JSONObject, name: str) -> str:
    value = told.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limits.HEADER_CHARS_MAX or not _is_unicode(value):
        raise BadRequest(Code.INVALID_BODY, f"{name} is a string of at most {limits.HEADER_CHARS_MAX} characters")
    return value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _message_id(message: object) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(Code.INVALID_BODY, 'a message is an object with an "id" and a "role"')
    message_id = message.get("id")
    if not isinstance(message_id, str):
        raise BadRequest(Code.INVALID_BODY, 'a message is an object with an "id" and a "role"')
    require_id(message_id, "message id", Code.INVALID_BODY)
    return message_id


def _message_digest(message: object) -> bytes:
    """Equal for equal messages, however their JSON is spelled: a retry may come from another serialiser."""
    return body_digest(json.dumps(message, sort_keys=True, separators=(",", ":")).encode())
