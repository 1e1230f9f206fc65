"""`POST /v1/sessions/{sid}/import`: a session out of the records of an ordinary JSON stream.

Whoever brings a session along puts its records into a stream first, as it likes, and may fail meanwhile. The import
looks at all of them, and then makes the session in one step, by reference: `core.session` has it as a fork. So there is
no session, or a whole one.
"""

from __future__ import annotations

import asyncio

import msgspec

from broker import limits
from broker.core.entry import Entry, ForkRefOptions, ImportOptions, Kind
from broker.core.events import time_ms_of
from broker.core.fork import lineage_of, unref_entry
from broker.core.outcome import Outcome, Result
from broker.core.page import before, records
from broker.core.state import Stream
from broker.errors import Unavailable
from broker.http.forks import entry_for
from broker.http.problems import BadRequest
from broker.http.request import Request
from broker.http.response import Response
from broker.http.session_answers import answer
from broker.http.session_fields import fields, message_digest, optional_object, require_json
from broker.http.session_forks import Heritage
from broker.http.session_routes import Target
from broker.partitions import Partitioned
from consumer.archive import BadRecord, LogCheck, is_time
from consumer.wire import SESSION_PATH_PREFIX, Code

SLICE_RECORDS = 200
"""Records looked at before others get a turn: some milliseconds."""


class Wanted(msgspec.Struct, frozen=True):
    """What a request says."""

    stream: str
    records: int
    created_ms: int
    metadata: bytes = b""
    metadata_digest: bytes = b""


def wanted_of(request: Request, body: bytes) -> Wanted:
    """What the request says. Raises BadRequest."""
    require_json(request.headers)
    told = fields(body, {"stream", "records", "createdAt", "metadata"})
    stream, count, created_at = told.get("stream"), told.get("records"), told.get("createdAt")
    if not isinstance(stream, str) or not stream or len(stream) > limits.PATH_BYTES_MAX:
        raise BadRequest(Code.INVALID_BODY, "stream is the path of the stream that has the records")
    if stream.startswith(SESSION_PATH_PREFIX):
        raise BadRequest(Code.INVALID_BODY, "a session is forked, not imported")
    if not isinstance(count, int) or isinstance(count, bool):
        raise BadRequest(Code.INVALID_BODY, "records says how many there are")
    if not isinstance(created_at, str) or not is_time(created_at):
        raise BadRequest(Code.INVALID_BODY, "createdAt is a time in UTC, to the millisecond")
    metadata = optional_object(told, "metadata")
    digest = message_digest(told["metadata"]) if metadata else b""
    return Wanted(stream, count, time_ms_of(created_at), metadata, digest)


class SessionImports:
    """Imports over one partition: the order of the steps."""

    def __init__(self, partition: Partitioned) -> None:
        self._partition = partition

    async def make(self, request: Request, target: Target, body: bytes) -> Response:
        """Look at the records, tell their stream, make the session; if that fails the stream is told before the client.

        Raises BadRequest and BrokerError.
        """
        wanted = wanted_of(request, body)
        if await self._partition.stream(target.path) is not None:
            confirm = entry_for(Kind.IMPORT, target.path, request, ImportOptions(wanted.stream, 0, (), 0))
            return self._answer(target, confirm, await self._partition.propose(confirm))
        source = await self._partition.stream(wanted.stream)
        if source is None or source.deleted or not source.is_json:
            raise BadRequest(Code.STREAM_NOT_FOUND, "there is no JSON stream with the records")
        if source.tail != wanted.records:
            raise BadRequest(Code.INVALID_BODY, f"the stream has {source.tail} records, not {wanted.records}")
        heritage = await self._heritage(wanted.stream, source)
        child = ForkRefOptions(target.path, self._partition.now_ms() + limits.FORK_MS_MAX, source.offset(source.tail))
        ref = entry_for(Kind.FORK_REF, wanted.stream, request, child)
        agreed = await self._partition.propose(ref)
        if agreed.result is Result.REFUSED:
            return self._answer(target, ref, agreed)
        options = ImportOptions(
            wanted.stream,
            source.incarnation,
            lineage_of(source, wanted.stream, source.tail),
            child.deadline_ms,
            messages=tuple(heritage.messages.values()),
            generations=tuple(heritage.generations.values()),
            metadata=wanted.metadata,
            metadata_digest=wanted.metadata_digest,
            created_ms=wanted.created_ms,
        )
        entry = entry_for(Kind.IMPORT, target.path, request, options, nonce=ref.nonce)
        outcome = await self._partition.propose(entry)
        if outcome.result is not Result.CREATED:
            await self._partition.propose(unref_entry(wanted.stream, source.incarnation, target.path, ref.nonce))
        return self._answer(target, entry, outcome)

    def _answer(self, target: Target, entry: Entry, outcome: Outcome) -> Response:
        return answer(target, entry, outcome, self._partition.durability)

    async def _heritage(self, path: str, source: Stream) -> Heritage:
        """What the records tell. Raises BadRequest if they are no session's, or one that still runs."""
        heritage, check, position = Heritage(), LogCheck(), 0
        while position < source.tail:
            page = await self._partition.read(path, source, position, limits.READ_BYTES_MAX)
            if page is None:
                raise Unavailable("the records could not be read just now")
            found = records(before(page, source.tail))
            for start in range(0, len(found), SLICE_RECORDS):
                for number, record in enumerate(found[start : start + SLICE_RECORDS], position + start + 1):
                    _take(check, heritage, number, record)
                await asyncio.sleep(0)
            position += len(found)
        try:
            check.require_ended()
        except BadRecord as error:
            raise BadRequest(Code.INVALID_BODY, str(error)) from None
        return heritage


def _take(check: LogCheck, heritage: Heritage, number: int, record: bytes) -> None:
    try:
        check.add(record)
    except BadRecord as error:
        raise BadRequest(Code.INVALID_BODY, f"record {number}: {error}") from None
    heritage.add(record)
