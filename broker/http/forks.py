"""Forks over HTTP: a PUT with Stream-Forked-From becomes two entries, or three (PROTOCOL.md 4.2, 5.1; `core.fork`).

Pure, as `streams` is: what to propose, given the request and what came of the entry before.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from broker import limits
from broker.core.entry import Entry, ForkOptions, ForkRefOptions, Kind, encode_options
from broker.core.fork import lineage_of
from broker.core.offset import START_TOKEN
from broker.core.state import Stream
from broker.http.problems import BadRequest
from broker.http.request import Request, decode_path
from broker.http.streams import configuration_of, records_of, traceparent_of
from consumer.wire import OFFSET_START, STREAM_FORK_OFFSET, STREAM_FORK_SUB_OFFSET, STREAM_FORKED_FROM, Code

_FORKED_FROM: Final = STREAM_FORKED_FROM.encode()
_FORK_OFFSET: Final = STREAM_FORK_OFFSET.encode()
_SUB_OFFSET: Final = STREAM_FORK_SUB_OFFSET.encode()
_STREAMS: Final = b"/v1/stream/"
_DECIMAL: Final = re.compile(rb"0|[1-9][0-9]{0,15}")


def is_fork(request: Request) -> bool:
    """Whether a PUT asks for a fork. Raises BadRequest where it only half does."""
    if _FORKED_FROM in request.headers:
        return True
    if _FORK_OFFSET in request.headers or _SUB_OFFSET in request.headers:
        raise BadRequest(Code.INVALID_HEADER, "a fork offset without Stream-Forked-From")
    return False


def confirm_of(request: Request) -> Entry:
    """The entry that confirms, or refuses, a fork whose path is taken. Raises BadRequest."""
    options = ForkOptions(
        source_path=_source_path(request),
        source_incarnation=0,
        lineage=(),
        deadline_ms=0,
        offset=_offset(request),
        sub_offset=_sub_offset(request),
        closed=configuration_of(request.headers).closed,
        wanted=_wanted(request),
    )
    return entry_for(Kind.FORK, request.path, request, options)


def ref_of(request: Request, now_ms: int) -> Entry:
    """The entry that asks the source. Raises BadRequest."""
    options = ForkRefOptions(
        child_path=request.path,
        deadline_ms=now_ms + limits.FORK_MS_MAX,
        offset=_offset(request),
        sub_offset=_sub_offset(request),
        content_type=_wanted(request)[0],
        forks_max=limits.FORKS_MAX,
    )
    return entry_for(Kind.FORK_REF, _source_path(request), request, options)


def fork_of(request: Request, body: bytes, ref: Entry, source: Stream, position: int) -> Entry:
    """The entry that makes the fork, now that the source has agreed to `ref`. Raises BadRequest for a bad body.

    The deadline is the one that the source was told: it keeps its records for a child that comes by then, no longer.
    A lifetime that the request leaves open is the source's, by value (the table of PROTOCOL.md 4.2).
    """
    wanted = configuration_of(request.headers, source.content_type)
    inherits = wanted.ttl_s is None and wanted.expires_at_ms is None
    options = ForkOptions(
        source_path=ref.path,
        source_incarnation=source.incarnation,
        lineage=lineage_of(source, ref.path, position),
        deadline_ms=msgspec.msgpack.decode(ref.options, type=ForkRefOptions).deadline_ms,
        offset=_offset(request),
        sub_offset=_sub_offset(request),
        content_type=wanted.content_type,
        ttl_s=source.ttl_s if inherits else wanted.ttl_s,
        expires_at=source.expires_at if inherits else wanted.expires_at,
        expires_at_ms=source.expires_at_ms if inherits else wanted.expires_at_ms,
        closed=wanted.closed,
        wanted=_wanted(request),
    )
    lengths, data = records_of(wanted.content_type, body)
    return entry_for(Kind.FORK, request.path, request, options, nonce=ref.nonce, lengths=lengths, body=data)


def entry_for(
    kind: Kind,
    path: str,
    request: Request,
    options: msgspec.Struct,
    *,
    nonce: int = 0,
    lengths: bytes = b"",
    body: bytes = b"",
) -> Entry:
    """An entry of a fork, or of what is made as forks are, as this request asks for it."""
    return Entry(
        kind,
        path,
        nonce=nonce,
        request_id=request.request_id,
        traceparent=traceparent_of(request.headers),
        options=encode_options(options),
        lengths=lengths,
        body=body,
    )


def _source_path(request: Request) -> str:
    """The source's path. The header has that of its URL on this server, which may be mounted under a prefix."""
    root = request.target.partition(_STREAMS)[0]
    value = request.headers[_FORKED_FROM].strip()
    for prefix in (root + _STREAMS, _STREAMS):
        if value.startswith(prefix):
            return decode_path(value[len(prefix) :])
    raise BadRequest(Code.INVALID_HEADER, "Stream-Forked-From is the path of a stream's URL on this server")


def _offset(request: Request) -> str:
    value = request.headers.get(_FORK_OFFSET, b"").decode("latin-1")
    if len(value) > limits.HEADER_CHARS_MAX:
        raise BadRequest(Code.INVALID_OFFSET, "not an offset of this broker")
    return START_TOKEN if value == OFFSET_START else value


def _sub_offset(request: Request) -> int:
    value = request.headers.get(_SUB_OFFSET, b"0")
    if not _DECIMAL.fullmatch(value):
        raise BadRequest(Code.INVALID_HEADER, "Stream-Fork-Sub-Offset is not a decimal integer")
    return int(value)


def _wanted(request: Request) -> tuple[str, int | None, int | None]:
    """What the request says of the fork's configuration; the rest is inherited."""
    wanted = configuration_of(request.headers, "")
    return wanted.content_type, wanted.ttl_s, wanted.expires_at_ms
