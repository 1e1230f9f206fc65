"""A session's records as bytes: State Protocol change events, `{"type", "key", "value", "headers"}`.

The bytes are part of the log: what is rendered here for an entry is the same for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from broker.core.state import Generation
from consumer.wire import RecordType

_json = msgspec.json.encode


def record(record_type: str, key: str, value: bytes, headers: bytes) -> bytes:
    """Any record, of parts that are JSON already."""
    return b'{"type":"%b","key":%b,"value":%b,"headers":%b}' % (record_type.encode(), _json(key), value, headers)


def headers(operation: bytes, txid: str, time_ms: int | None = None) -> bytes:
    """The time is for records whose value is the client's own and has no place for it."""
    told = b'"operation":"%b"' % operation
    if txid:
        told += b',"txid":%b' % _json(txid)
    if time_ms is not None:
        told += b',"timestamp":%b' % _json(timestamp(time_ms))
    return b"{%b}" % told


def chunk_records(generation: Generation, chunks: Sequence[bytes], txid: str) -> list[bytes]:
    """The chunks as records. Ids and txid are the same for all, so everything but number and chunk is made once."""
    before, between, behind = _around_chunk(generation.generation_id, generation.message_id, txid)
    if len(chunks) == 1:  # a token
        return [b"%b%d%b%b%b" % (before, generation.chunks, between, chunks[0], behind)]
    return [
        b"%b%d%b%b%b" % (before, number, between, chunk, behind)
        for number, chunk in enumerate(chunks, generation.chunks)
    ]


@lru_cache(maxsize=4096)
def _around_chunk(generation_id: str, message_id: str, txid: str) -> tuple[bytes, bytes, bytes]:
    """What stands before the number, between that and the chunk, and behind it."""
    return (
        b'{"type":"chunk","key":%b:' % _json(generation_id)[:-1],
        b'","value":{"messageId":%b,"chunk":' % _json(message_id),
        b'},"headers":%b}' % headers(b"insert", txid),
    )


def generation_record(generation: Generation, operation: bytes, txid: str) -> bytes:
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
    if generation.continues:
        value["continues"] = generation.continues
    if generation.reason:
        value["reason"] = generation.reason
    for name, raw in (("error", generation.error), ("usage", generation.usage), ("metadata", generation.metadata)):
        if raw:
            value[name] = msgspec.Raw(raw)
    value["createdAt"] = timestamp(generation.created_ms)
    if generation.ended_ms:
        value["endedAt"] = timestamp(generation.ended_ms)
    return record(RecordType.GENERATION, generation.generation_id, _json(value), headers(operation, txid))


def stop_record(generation: Generation, requested_by: str, reason: str, txid: str, now_ms: int) -> bytes:
    """That somebody asked for a stop."""
    value = {"messageId": generation.message_id}
    if requested_by:
        value["requestedBy"] = requested_by
    if reason:
        value["reason"] = reason
    value["createdAt"] = timestamp(now_ms)
    return record(RecordType.STOP, generation.generation_id, _json(value), headers(b"insert", txid))


def time_ms_of(text: str) -> int:
    """The time behind `timestamp`. Raises ValueError for what is none."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def timestamp(time_ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ms % 1000:03d}Z"
