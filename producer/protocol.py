"""Writing to raw streams as requests, and what their answers tell (PROTOCOL.md 5.1 to 5.5). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final

from consumer.answer import Response, check, is_true, number
from consumer.errors import AttemptFailed
from consumer.transport import Request
from consumer.wire import (
    PRODUCER_EPOCH,
    PRODUCER_ID,
    PRODUCER_SEQ,
    SEQ_MAX,
    STREAM_CLOSED,
    STREAM_DURABILITY,
    STREAM_EXPIRES_AT,
    STREAM_FORK_OFFSET,
    STREAM_FORK_SUB_OFFSET,
    STREAM_FORKED_FROM,
    STREAM_NEXT_OFFSET,
    STREAM_SEQ,
    STREAM_TTL,
)

__all__ = ["Appended", "Identity", "StreamInfo", "append", "appended", "create", "fork", "info"]

_PRINTABLE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """A stream as it stood when the broker answered."""

    content_type: str
    offset: str
    """Where it ended: a reader that starts here gets what came later."""
    closed: bool
    ttl_s: int | None = None
    """How long it lives without being read or written; None if the answer did not say."""
    expires_at: str | None = None
    """When it ends in any case, RFC 3339; None if the answer did not say."""
    created: bool = False
    """Whether this request made it. False if it was there, just like this; also when an attempt before made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What the broker acknowledged: everything up to this is in the log."""

    offset: str | None
    """Where the stream stands after it. None for a duplicate so old that nobody knows where it landed."""
    closed: bool
    """Whether the stream takes no more."""
    durability: str
    """What the acknowledgement promises: a value of `consumer.wire.Durability`, empty if the server did not say."""
    epoch: int | None = None
    """Of an idempotent producer, and `seq` with it: the batch that this acknowledges."""
    seq: int | None = None
    duplicate: bool = False
    """It had arrived before: an earlier attempt did it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes a batch, and which (PROTOCOL.md 5.2.1)."""

    producer_id: str
    epoch: int
    seq: int

    def __post_init__(self) -> None:
        _printable("producer_id", self.producer_id)
        for name, value in (("epoch", self.epoch), ("seq", self.seq)):
            if not 0 <= value <= SEQ_MAX:
                raise ValueError(f"{name} must be 0 to {SEQ_MAX}: {value}")

    @property
    def headers(self) -> dict[str, str]:
        return {PRODUCER_ID: self.producer_id, PRODUCER_EPOCH: str(self.epoch), PRODUCER_SEQ: str(self.seq)}


# -- requests --------------------------------------------------------------------------------------------------------


def create(
    url: str,
    body: bytes = b"",
    *,
    content_type: str | None,
    ttl_s: int | None = None,
    expires_at: datetime | str | None = None,
    closed: bool = False,
) -> Request:
    """A PUT. Raises ValueError for what can be no header, and for two kinds of lifetime at once."""
    if ttl_s is not None and expires_at is not None:
        raise ValueError("ttl_s and expires_at exclude each other")
    if ttl_s is not None and ttl_s < 0:
        raise ValueError(f"ttl_s must not be below 0: {ttl_s}")
    headers = {
        "content-type": content_type,
        STREAM_TTL: None if ttl_s is None else str(ttl_s),
        STREAM_EXPIRES_AT: _timestamp(expires_at),
        STREAM_CLOSED: "true" if closed else None,
    }
    return Request("PUT", url, body, _given(headers))


def fork(request: Request, source_path: str, *, offset: str | None, sub_offset: int | None) -> Request:
    """The PUT of `create`, of a stream that begins with what another holds up to there (PROTOCOL.md 4.2)."""
    if sub_offset is not None and sub_offset < 0:
        raise ValueError(f"sub_offset must not be below 0: {sub_offset}")
    headers = {
        STREAM_FORKED_FROM: source_path,
        STREAM_FORK_OFFSET: offset,
        STREAM_FORK_SUB_OFFSET: None if sub_offset is None else str(sub_offset),
    }
    return Request("PUT", request.target, request.body, {**request.headers, **_given(headers)})


def append(
    url: str,
    body: bytes,
    *,
    content_type: str,
    stream_seq: str | None = None,
    closes: bool = False,
    identity: Identity | None = None,
) -> Request:
    """A POST: an append, a close, or both. Raises ValueError for what can be no header."""
    headers = {
        "content-type": content_type if body else None,
        STREAM_SEQ: stream_seq,
        STREAM_CLOSED: "true" if closes else None,
    }
    return Request("POST", url, body, {**_given(headers), **(identity.headers if identity else {})})


def _given(headers: Mapping[str, str | None]) -> dict[str, str]:
    return {name: _printable(name, value) for name, value in headers.items() if value is not None}


def _printable(name: str, value: str) -> str:
    if not _PRINTABLE.fullmatch(value):
        raise ValueError(f"{name} must be printable ASCII, without blanks around it: {value!r}")
    return value


def _timestamp(moment: datetime | str | None) -> str | None:
    if not isinstance(moment, datetime):
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"expires_at must have a time zone: {moment}")
    return moment.isoformat()


# -- answers ---------------------------------------------------------------------------------------------------------


def info(response: Response) -> StreamInfo:
    """What the answer to a PUT or a HEAD tells. Raises what `consumer.answer.check` raises."""
    headers = _of_a_broker(response)
    offset, content_type = headers.get(STREAM_NEXT_OFFSET), headers.get("content-type")
    if offset is None or content_type is None:
        raise _stranger(response)
    return StreamInfo(
        content_type=content_type,
        offset=offset,
        closed=is_true(headers.get(STREAM_CLOSED)),
        ttl_s=number(headers.get(STREAM_TTL)),
        expires_at=headers.get(STREAM_EXPIRES_AT),
        created=response.status == HTTPStatus.CREATED,
    )


def appended(response: Response, identity: Identity | None = None, *, is_close_only: bool = False) -> Appended:
    """What the answer to a POST tells. Raises what `consumer.answer.check` raises."""
    headers = _of_a_broker(response)
    # 200 tells a producer new data from a duplicate (PROTOCOL.md 5.2.1); a close without data is a 204 in any case.
    duplicate = identity is not None and response.status == HTTPStatus.NO_CONTENT and not is_close_only
    return Appended(
        offset=headers.get(STREAM_NEXT_OFFSET),
        closed=is_true(headers.get(STREAM_CLOSED)),
        durability=headers.get(STREAM_DURABILITY, ""),
        epoch=identity.epoch if identity else None,
        seq=identity.seq if identity else None,
        duplicate=duplicate,
    )


def _of_a_broker(response: Response) -> Mapping[str, str]:
    """The headers of a 2xx that a server of the protocol gave: a captive portal answers everything with 200."""
    check(response)
    if not {STREAM_NEXT_OFFSET, STREAM_CLOSED, PRODUCER_SEQ} & {name.lower() for name in response.headers}:
        raise _stranger(response)
    return response.headers


def _stranger(response: Response) -> AttemptFailed:
    return AttemptFailed(
        "the answer is not a broker's: it does not tell where the stream stands", status=response.status
    )
