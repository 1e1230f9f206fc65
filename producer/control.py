"""Single requests beside the stream of batches: sessions, whole messages, stop, and how a generation stands."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from consumer.address import generation_target, messages_target, session_target, with_query
from consumer.answer import read
from consumer.retry import persist
from consumer.transport import Request, Transport
from consumer.wire import JSON, RecordType
from producer.encoding import encode_chunk
from producer.limits import Limits

__all__ = ["Control", "GenerationState", "MessageReceipt", "SessionReceipt", "Stopped"]

T = TypeVar("T")


class SessionReceipt(msgspec.Struct, frozen=True, rename="camel"):
    """A session that exists durably."""

    session_id: str
    offset: str
    """Where its stream stood when this was answered."""
    created: bool
    """False if it existed already."""


class MessageReceipt(msgspec.Struct, frozen=True, rename="camel"):
    """A whole message that is durable."""

    message_id: str
    offset: str
    txid: str | None = None
    duplicate: bool = False
    """It had been posted before, with the same body; `offset` is then the original's."""


class Stopped(msgspec.Struct, frozen=True, rename="camel"):
    """How a generation ended that was asked to stop."""

    generation_id: str
    status: str
    """`aborted`, or what it had ended as before."""
    reason: str | None = None
    offset: str | None = None


class GenerationState(msgspec.Struct, frozen=True, rename="camel"):
    """How a generation stands at the broker."""

    status: str
    seq: int
    """The highest that was accepted."""
    chunks: int
    fence: int
    reason: str | None = None


class _Added(msgspec.Struct):
    """A record that is durable."""

    offset: str


class Control:
    """The requests, each tried until it is answered or the deadline passed. They raise what `consumer.errors` lists."""

    def __init__(self, transport: Transport, limits: Limits) -> None:
        self._transport = transport
        self._limits = limits

    async def create_session(
        self, session_id: str, message: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None
    ) -> SessionReceipt:
        """Create it, or confirm it."""
        given = {"message": message, "metadata": metadata}
        body = {name: value for name, value in given.items() if value is not None}
        return await self._call(_json("PUT", session_target(session_id), body), SessionReceipt)

    async def import_session(
        self, session_id: str, stream: str, records: int, created_at: str, metadata: Mapping[str, Any] | None
    ) -> SessionReceipt:
        """Make a session of the records of a stream."""
        body = {"stream": stream, "records": records, "createdAt": created_at, "metadata": metadata}
        return await self._call(_json("POST", f"{session_target(session_id)}/import", body), SessionReceipt)

    async def send_message(self, session_id: str, message: Mapping[str, Any], txid: str | None) -> MessageReceipt:
        """Add a whole message, or confirm it."""
        target = with_query(messages_target(session_id), {"txid": txid})
        return await self._call(_json("POST", target, message), MessageReceipt)

    async def upsert(self, session_id: str, record_type: RecordType, key: str, value: Mapping[str, Any]) -> None:
        """Add a record that is neither a message nor a chunk, or replace the one with this key."""
        body = {"type": record_type, "key": key, "value": value}
        await self._call(_json("POST", f"{session_target(session_id)}/records", body), _Added)

    async def stop(self, session_id: str, generation_id: str, requested_by: str | None, reason: str | None) -> Stopped:
        """End a generation, or learn how it ended."""
        given = {"requestedBy": requested_by, "reason": reason}
        body = {name: value for name, value in given.items() if value is not None}
        target = f"{generation_target(session_id, generation_id)}/stop"
        return await self._call(_json("POST", target, body), Stopped)

    async def generation_state(self, session_id: str, generation_id: str) -> GenerationState:
        """How far it got."""
        return await self._call(Request("GET", generation_target(session_id, generation_id)), GenerationState)

    async def _call(self, request: Request, shape: type[T]) -> T:
        return await persist(partial(self._once, request, shape), self._limits, deadline_s=self._limits.deadline_s)

    async def _once(self, request: Request, shape: type[T]) -> T:
        return read(await self._transport.send(request), shape)


def _json(method: str, target: str, body: Mapping[str, Any]) -> Request:
    """Raises TypeError if the body is no JSON."""
    if not body:
        return Request(method, target)
    return Request(method, target, encode_chunk(body), {"content-type": JSON})
