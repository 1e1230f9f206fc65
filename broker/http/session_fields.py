"""What bodies and queries of the session API say, field by field; and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Set as AbstractSet
from typing import Final

from broker import limits
from broker.core.entry import body_digest
from broker.core.state import media_type
from broker.http.problems import BadRequest
from broker.http.records import split
from broker.http.request import Headers, Request, parameters_of
from broker.http.session_routes import require_id
from consumer.plain import JSONObject, NotJSON, decode, encode
from consumer.wire import JSON, Code

DECIMAL: Final = re.compile(rb"0|[1-9][0-9]{0,15}")
_PARAMETERS: Final = frozenset(
    {"messageId", "lane", "format", "role", "actorId", "leaseMs", "onConflict", "continues", "txid"}
)


def write_parameters(query: bytes) -> dict[str, str]:
    """The query of a write. Raises BadRequest (INVALID_PARAMETER) for a parameter that no write has."""
    parameters = parameters_of(query)
    unknown = parameters.keys() - _PARAMETERS
    if unknown:  # a misspelt messageId must not open a generation under another id
        raise BadRequest(Code.INVALID_PARAMETER, f"unknown: {', '.join(sorted(unknown))[:200]}")
    return parameters


def on_conflict(parameters: dict[str, str]) -> bool:
    """Whether a generation gives way to one that is open in its lane."""
    wanted = parameters.get("onConflict", "interrupt")
    if wanted not in ("interrupt", "reject"):
        raise BadRequest(Code.INVALID_PARAMETER, "onConflict: interrupt or reject")
    return wanted == "reject"


def id_parameter(parameters: dict[str, str], name: str, default: str) -> str:
    if name not in parameters:
        return default
    require_id(parameters[name], name, Code.INVALID_PARAMETER)
    return parameters[name]


def lease_ms(parameters: dict[str, str]) -> int:
    text = parameters.get("leaseMs")
    if text is None:
        return limits.LEASE_MS
    lowest, highest = limits.LEASE_MS_MIN, limits.LEASE_MS_MAX
    if DECIMAL.fullmatch(text.encode()) is None or not lowest <= int(text) <= highest:
        raise BadRequest(Code.INVALID_PARAMETER, f"leaseMs: {lowest} to {highest}")
    return int(text)


def require_json(headers: Headers) -> None:
    told = headers.get(b"content-type", b"")
    if told != b"application/json" and media_type(told.decode("latin-1")) != JSON:
        raise BadRequest(Code.INVALID_CONTENT_TYPE, f"the body is {JSON}")


def optional_fields(request: Request, body: bytes, names: AbstractSet[str]) -> JSONObject:
    """What a body that may be left out says, in fields of these names."""
    if not body:
        return {}
    require_json(request.headers)
    return fields(body, names)


def fields(body: bytes, names: AbstractSet[str]) -> JSONObject:
    """The fields, of these names, of the JSON object that a body is."""
    told = json_object(body)
    if not told.keys() <= names:
        unknown = ", ".join(sorted(told.keys() - names))
        raise BadRequest(Code.INVALID_BODY, f"unknown fields: {_printable(unknown)}")
    return told


def json_object(body: bytes) -> JSONObject:
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


def optional_object(told: JSONObject, name: str) -> bytes:
    value = told.get(name)
    if value is None:
        return b""
    if not isinstance(value, dict):
        raise BadRequest(Code.INVALID_BODY, f"{name} is a JSON object")
    return encode(value)


def short_text(told: JSONObject, name: str) -> str:
    value = told.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limits.HEADER_CHARS_MAX or not _is_unicode(value):
        raise BadRequest(Code.INVALID_BODY, f"{name} is a string of at most {limits.HEADER_CHARS_MAX} characters")
    return value


def id_field(told: JSONObject, name: str) -> str:
    """The id, "" where none is given. An empty one is refused: it would stand for all, or for none."""
    if told.get(name) is None:
        return ""
    value = short_text(told, name)
    require_id(value, name, Code.INVALID_BODY)
    return value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def message_id_of(message: object) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(Code.INVALID_BODY, 'a message is an object with an "id" and a "role"')
    message_id = message.get("id")
    if not isinstance(message_id, str):
        raise BadRequest(Code.INVALID_BODY, 'a message is an object with an "id" and a "role"')
    require_id(message_id, "message id", Code.INVALID_BODY)
    return message_id


def message_digest(message: object) -> bytes:
    """Equal for equal messages, however their JSON is spelled: a retry may come from another serialiser."""
    return body_digest(json.dumps(message, sort_keys=True, separators=(",", ":")).encode())
