"""Bringing a session to a broker from a file: see `consumer.archive` for what that is.

The records are put into a stream of their own first, by an idempotent producer. When the whole file is there and was
found to be one, a single request makes the session out of it, by reference: before that there is nothing, after it
everything. What was begun and not finished expires by itself.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Final

import anyio
import msgspec

from consumer.archive import ArchiveReader, BadArchive
from consumer.errors import ClientError
from consumer.wire import JSON
from producer.control import Control, SessionReceipt
from producer.streams import Streams

__all__ = ["import_session"]

STAGED_TTL_S: Final = 3600
"""How long records without a session stay, after the last of them."""


async def import_session(
    streams: Streams, control: Control, lines: AsyncIterable[bytes], session_id: str | None
) -> SessionReceipt:
    """See `Producer.import_session`."""
    archive, staged = ArchiveReader(), f"imports/{uuid.uuid4().hex}"
    await streams.create(staged, ttl_s=STAGED_TTL_S)
    try:
        async with streams.producer(staged, "import", content_type=JSON) as writing:
            async for line in lines:
                record = archive.add(line)
                if record is not None:
                    await writing.append(msgspec.Raw(record))
            archive.require_whole()
        header = archive.header
        if header is None:  # a whole file has one
            raise BadArchive("line 1: the file has no first line")
        created, metadata = header.created_at, header.metadata
        return await control.import_session(session_id or header.session_id, staged, archive.records, created, metadata)
    finally:
        # The session keeps the records that it needs; without one, nobody does.
        with anyio.CancelScope(shield=True), suppress(ClientError):
            await streams.delete(staged)
