"""The protocol's writes: a request becomes an entry, an outcome becomes an answer (PROTOCOL.md 5.1 to 5.4).

Both are pure. Whatever other way in there may be calls these two.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from broker import limits
from broker.core.entry import AppendOptions, CreateOptions, Entry, Kind, body_digest, encode_options
from broker.core.outcome import Outcome, Result
from broker.core.state import Stream, media_type
from broker.http.problems import BadRequest, answer_with, problem
from broker.http.records import split
from broker.http.request import Headers, Request
from broker.http.response import NO_BODY, Header, Response
from consumer.wire import JSON, OCTET_STREAM, SEQ_MAX, SESSION_PATH_PREFIX, Code

CLOSED: Final[Header] = (b"stream-closed", b"true")

_READS: Final = ("GET", "HEAD", "OPTIONS")
_ALL: Final = (*_READS, "PUT", "POST", "DELETE")
_DECIMAL: Final = re.compile(rb"0|[1-9][0-9]{0,15}")
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 -- a token of RFC 9110, no secret
_CONTENT_TYPE: Final = re.compile(rf'{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*(?:{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))?)*')
_RFC_3339: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:)(\d{2})(?:\.(\d+))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def require_method(method: str, path: str) -> None:
    """Refuse a method that this path does not have: a session is written through its own API only (PROTOCOL.md 5.2).

    Raises BadRequest (METHOD_NOT_ALLOWED).
    """
    allowed = _READS if path.startswith(SESSION_PATH_PREFIX) else _ALL
    if method not in allowed:
        allow = (b"allow", ", ".join(allowed).encode())
        detail = "a session is written under /v1/sessions" if allowed is _READS and method in _ALL else ""
        raise BadRequest(Code.METHOD_NOT_ALLOWED, detail, headers=(allow,))


def entry_of(request: Request, body: bytes) -> Entry:
    """The entry that a PUT, POST or DELETE asks for.

    Raises BadRequest with the code that the client is to be told; such a request never becomes an entry.
    """
    if request.method == "POST":
        return _append(request, body)
    if request.method == "PUT":
        return _create(request, body)
    return Entry(Kind.DELETE, request.path, request_id=request.request_id, traceparent=traceparent_of(request.headers))


def configuration_of(headers: Headers, content_type: str = OCTET_STREAM) -> CreateOptions:
    """What a PUT says of the stream to create; `content_type` is for one that names none. Raises BadRequest."""
    if b"content-type" in headers:
        content_type = _content_type(headers[b"content-type"])
    ttl_s = _ttl_s(headers)
    expires_at, expires_at_ms = _expires_at(headers)
    if ttl_s is not None and expires_at is not None:
        raise BadRequest(Code.INVALID_HEADER, "Stream-TTL and Stream-Expires-At exclude each other")
    return CreateOptions(content_type, ttl_s, expires_at, expires_at_ms, closed=_closes(headers))


def _create(request: Request, body: bytes) -> Entry:
    options = configuration_of(request.headers)
    lengths, data = records_of(options.content_type, body)
    return Entry(
        Kind.CREATE,
        request.path,
        request_id=request.request_id,
        traceparent=traceparent_of(request.headers),
        options=encode_options(options),
        lengths=lengths,
        body=data,
    )


def _append(request: Request, body: bytes) -> Entry:
    headers = request.headers
    closes = _closes(headers)
    if body:
        kind, content_type = Kind.APPEND, _required_content_type(headers)
        lengths, data = records_of(content_type, body)
        if not data:
            raise BadRequest(Code.EMPTY_ARRAY, "an append of nothing is likely a mistake")
    elif closes:  # whatever content type a client adds by itself says nothing about no content
        kind, content_type, lengths, data = Kind.CLOSE, "", b"", b""
    else:
        raise BadRequest(Code.EMPTY_BODY, "only a close (Stream-Closed: true) has no body")
    producer_id, epoch, seq = _producer(headers)
    return Entry(
        kind,
        request.path,
        producer_id=producer_id,
        epoch=epoch,
        seq=seq,
        digest=body_digest(data) if producer_id else b"",
        request_id=request.request_id,
        traceparent=traceparent_of(headers),
        options=_append_options(content_type, _stream_seq(headers), closes),
        lengths=lengths,
        body=data,
    )


@lru_cache(maxsize=256)
def _plain_options(content_type: str) -> bytes:
    return encode_options(AppendOptions(content_type, producers_max=limits.PRODUCERS_MAX))


def _append_options(content_type: str, stream_seq: str | None, closes: bool) -> bytes:  # noqa: FBT001 -- as the header
    if stream_seq is None and not closes:
        return _plain_options(content_type)
    return encode_options(AppendOptions(content_type, stream_seq, closes, limits.PRODUCERS_MAX))


def records_of(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """The records of a body, as a page holds them: (lengths, data). Raises BadRequest for what is no JSON."""
    if not body or media_type(content_type) != JSON:
        return b"", body
    return split(body)


# -- headers ---------------------------------------------------------------------------------------------------------


def _closes(headers: Headers) -> bool:
    value = headers.get(b"stream-closed")
    return value is not None and value.lower() == b"true"  # any other value is as good as none (PROTOCOL.md 4.1)


def _required_content_type(headers: Headers) -> str:
    value = headers.get(b"content-type")
    if value is None:
        raise BadRequest(Code.INVALID_CONTENT_TYPE, "an append needs a Content-Type")
    return _content_type(value)


@lru_cache(maxsize=256)
def _content_type(value: bytes) -> str:
    text = value.decode("latin-1")
    if len(text) > limits.HEADER_CHARS_MAX or not _CONTENT_TYPE.fullmatch(text):
        raise BadRequest(Code.INVALID_CONTENT_TYPE, f"not a media type of at most {limits.HEADER_CHARS_MAX} characters")
    return text


def _producer(headers: Headers) -> tuple[str, int, int]:
    """Producer id, epoch and seq; an empty id when no idempotent producer writes (PROTOCOL.md 5.2.1)."""
    producer_id = headers.get(b"producer-id")
    epoch = headers.get(b"producer-epoch")
    seq = headers.get(b"producer-seq")
    if producer_id is None or epoch is None or seq is None:
        if producer_id is epoch is seq:
            return "", 0, 0
        raise BadRequest(Code.INVALID_PRODUCER, "Producer-Id, Producer-Epoch and Producer-Seq go together")
    name = _short_text(producer_id, Code.INVALID_PRODUCER, "Producer-Id")
    return name, _number(epoch, "Producer-Epoch"), _number(seq, "Producer-Seq")


def _number(value: bytes, name: str) -> int:
    number = int(value) if _DECIMAL.fullmatch(value) else -1
    if not 0 <= number <= SEQ_MAX:
        raise BadRequest(Code.INVALID_PRODUCER, f"{name} is not a decimal integer from 0 to {SEQ_MAX}")
    return number


def _stream_seq(headers: Headers) -> str | None:
    value = headers.get(b"stream-seq")
    return None if value is None else _short_text(value, Code.INVALID_HEADER, "Stream-Seq")


def _short_text(value: bytes, code: Code, name: str) -> str:
    """A header kept in a row. Latin-1 keeps the order of the bytes, which is how Stream-Seq compares."""
    if len(value) > limits.HEADER_CHARS_MAX or not _PRINTABLE.fullmatch(value):
        raise BadRequest(code, f"{name} is not 1 to {limits.HEADER_CHARS_MAX} printable characters")
    return value.decode("latin-1")


def _ttl_s(headers: Headers) -> int | None:
    value = headers.get(b"stream-ttl")
    if value is None:
        return None
    if not _DECIMAL.fullmatch(value) or int(value) > limits.TTL_S_MAX:
        raise BadRequest(Code.INVALID_HEADER, f"Stream-TTL is not a decimal integer from 0 to {limits.TTL_S_MAX}")
    return int(value)


def _expires_at(headers: Headers) -> tuple[str, int] | tuple[None, None]:
    """Stream-Expires-At as it was written, and in ms since 1970."""
    value = headers.get(b"stream-expires-at")
    if value is None:
        return None, None
    text = value.decode("latin-1")
    try:
        return text, _rfc3339_ms(text)
    except ValueError:
        raise BadRequest(Code.INVALID_HEADER, "Stream-Expires-At is not an RFC 3339 timestamp") from None


def _rfc3339_ms(text: str) -> int:
    match = _RFC_3339.fullmatch(text)
    if match is None or len(text) > limits.HEADER_CHARS_MAX:
        raise ValueError(text)
    date, minutes, seconds, fraction, zone = match.groups()
    leap = seconds == "60"  # RFC 3339 knows leap seconds, Python does not
    whole = datetime.fromisoformat(f"{date}T{minutes}{'59' if leap else seconds}{zone.upper()}")
    since = whole - _EPOCH + timedelta(seconds=leap)
    return since // timedelta(milliseconds=1) + int(f"{fraction or ''}000"[:3])


def traceparent_of(headers: Headers) -> str:
    """The W3C trace context, where it is well formed; empty otherwise."""
    value = headers.get(b"traceparent")
    return value.decode() if value is not None and _TRACEPARENT.fullmatch(value) else ""


# -- answers ---------------------------------------------------------------------------------------------------------


def answer(request: Request, entry: Entry, outcome: Outcome, durability: str) -> Response:
    """What the client is told of what its entry did. `durability` is what an acknowledgement promises."""
    stream = outcome.stream
    if outcome.result is Result.REFUSED or stream is None:
        return _refusal(entry, outcome)
    headers: list[Header] = [(b"stream-durability", durability.encode())]
    if entry.kind == Kind.DELETE:
        return Response(204, headers)
    if outcome.next_position is not None:  # of a duplicate known by its seq alone, nobody knows where it landed
        headers.append((b"stream-next-offset", stream.offset(outcome.next_position).encode()))
    if stream.closed:
        headers.append(CLOSED)
    if entry.kind in (Kind.CREATE, Kind.FORK):
        return _created(request, outcome, stream, headers)
    if not entry.producer_id:
        return Response(204, headers)
    if outcome.epoch is not None and outcome.seq is not None:
        headers.append((b"producer-epoch", b"%d" % outcome.epoch))
        headers.append((b"producer-seq", b"%d" % outcome.seq))
    if outcome.result is Result.ACCEPTED and entry.kind == Kind.APPEND:
        headers.append(NO_BODY)
        return Response(200, headers)  # 200 tells a producer new data from a duplicate (PROTOCOL.md 5.2.1)
    return Response(204, headers)


def _created(request: Request, outcome: Outcome, stream: Stream, headers: list[Header]) -> Response:
    headers += [(b"content-type", stream.content_type.encode()), NO_BODY]
    if outcome.result is not Result.CREATED:
        return Response(200, headers)
    return Response(201, [*headers, (b"location", request.url)])


def _refusal(entry: Entry, outcome: Outcome) -> Response:
    code = outcome.code or Code.INTERNAL
    told = problem(code, outcome.detail, request_id=entry.request_id)
    headers: list[Header] = []
    if code is Code.STREAM_CLOSED and outcome.stream is not None:
        told.next_offset = outcome.stream.offset(outcome.stream.tail)
        headers += [CLOSED, (b"stream-next-offset", told.next_offset.encode())]
    if entry.producer_id:
        headers += _producer_facts(entry, outcome, told.status)
        told.received_seq = entry.seq
        told.expected_seq = outcome.expected_seq
        told.current_epoch = outcome.epoch
    return answer_with(told, tuple(headers))


def _producer_facts(entry: Entry, outcome: Outcome, status: int) -> list[Header]:
    headers: list[Header] = []
    if outcome.epoch is not None:
        headers.append((b"producer-epoch", b"%d" % outcome.epoch))
    if status == 409:  # noqa: PLR2004 -- Conflict
        # Published producers take a 409 for a gap and wait for what lies before `expected`; where it is the very seq
        # that they sent they know that waiting does not help.
        expected = entry.seq if outcome.expected_seq is None else outcome.expected_seq
        headers.append((b"producer-expected-seq", b"%d" % expected))
        headers.append((b"producer-received-seq", b"%d" % entry.seq))
    return headers
