"""`POST /v1/sessions/{sid}/fork` over one partition.

The decisions are in `session_forks`; here is the order of the steps.
"""

from __future__ import annotations

import asyncio

from broker import limits
from broker.core.entry import Entry
from broker.core.fork import unref_entry
from broker.core.outcome import Outcome, Result
from broker.core.page import before, records
from broker.core.state import Stream
from broker.errors import Unavailable
from broker.http import session_answers as answers, session_forks as forks
from broker.http.problems import BadRequest
from broker.http.request import Request
from broker.http.response import Response
from broker.http.session_forks import Heritage, Wanted
from broker.http.session_routes import Target
from broker.partitions import Partitioned
from consumer.wire import Code


class SessionForks:
    """See the module."""

    def __init__(self, partition: Partitioned) -> None:
        self._partition = partition

    async def fork(self, request: Request, target: Target, body: bytes) -> Response:
        """Read what is inherited, ask the source, make the child; if that fails the source is told before the client.

        Raises BadRequest and BrokerError.
        """
        wanted = forks.wanted_of(request, target, body)
        if await self._partition.stream(wanted.path) is not None:
            confirm = forks.confirm_of(request, target, wanted)
            return self._answer(target, confirm, await self._partition.propose(confirm))
        session, source = await self._partition.session(target.path), await self._partition.stream(target.path)
        if session is None or source is None or source.deleted:
            raise BadRequest(Code.SESSION_NOT_FOUND)
        position = await self._position(target, wanted, source)
        heritage = await self._heritage(target, source, position)
        ref = forks.ref_of(request, target, wanted, source.offset(position), self._partition.now_ms())
        agreed = await self._partition.propose(ref)
        if agreed.result is Result.REFUSED or agreed.stream is None:
            return self._answer(target, ref, forks.source_refusal(agreed))
        entry = forks.fork_of(request, wanted, ref, agreed.stream, session, position, heritage)
        outcome = await self._partition.propose(entry)
        if outcome.result is not Result.CREATED:
            await self._partition.propose(unref_entry(ref.path, source.incarnation, wanted.path, ref.nonce))
        return self._answer(target, entry, outcome)

    def _answer(self, target: Target, entry: Entry, outcome: Outcome) -> Response:
        return answers.answer(target, entry, outcome, self._partition.durability)

    async def _position(self, target: Target, wanted: Wanted, source: Stream) -> int:
        if not wanted.message_id:
            return forks.position_of(wanted, source)
        end = (await self._heritage(target, source, source.tail)).end_of(wanted.message_id)
        if end is None:
            raise BadRequest(Code.MESSAGE_NOT_FOUND)
        return end

    async def _heritage(self, target: Target, source: Stream, end: int) -> Heritage:
        """What the records before `end` tell. In steps that let others run between them."""
        heritage, position = Heritage(), 0
        while position < end:
            page = await self._partition.read(target.path, source, position, limits.READ_BYTES_MAX)
            if page is None:
                raise Unavailable("the session could not be read just now")
            for record in records(before(page, end)):
                heritage.add(record)
            position = page.end
            await asyncio.sleep(0)
        return heritage
