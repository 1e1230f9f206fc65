"""`/v1/sessions/{session id}` and what is under it, over one partition and its materializer.

What there is, is in `session_routes`; the decisions are in `session_requests` and `session_answers`; here is the order
of the steps.
"""

from __future__ import annotations

from typing import Final

from broker import limits
from broker.core.entry import Kind
from broker.errors import BrokerError
from broker.http import flat_writes, session_answers as answers, session_messages as asked, session_requests as requests
from broker.http.async_acks import AsyncAcks
from broker.http.bodies import Bodies
from broker.http.endpoint import answer_error, unless_client_leaves
from broker.http.live_readers import LiveReaders
from broker.http.problems import BadRequest
from broker.http.request import ClientLeft, Receive, Request
from broker.http.response import LiveResponse, Response
from broker.http.session_fork_api import SessionForks
from broker.http.session_import import SessionImports
from broker.http.session_routes import PREFIX as ROUTES_PREFIX, Target, target_of
from broker.http.traffic import Traffic
from broker.http.txids import Txids
from broker.http.ui_stream import UIStreams
from broker.materializer import Materializer
from broker.partitions import Partitioned
from broker.settings import Settings
from consumer.wire import Code

PREFIX: Final = ROUTES_PREFIX.encode()
_ENDS_A_LIFE: Final = frozenset({Kind.SESSION_DELETE, Kind.SESSION_RESET})
LIVE_S_MAX: Final = limits.UI_STREAM_LIFE_S * 1.1 + limits.SSE_STALL_S
"""How long a live response may take at most: a connection's life, and a while for a reader that stalls."""


class SessionApi:
    """See the module."""

    def __init__(
        self,
        partition: Partitioned,
        settings: Settings,
        bodies: Bodies,
        materializer: Materializer,
        live: LiveReaders,
        async_acks: AsyncAcks,
        traffic: Traffic,
    ) -> None:
        self._partition = partition
        self._bodies = bodies
        self._materializer = materializer
        self._forks = SessionForks(partition)
        self._async_acks = async_acks
        self._traffic = traffic
        self._txids = Txids(partition, live)
        self._imports = SessionImports(partition)
        self._ui_streams = UIStreams(partition, settings, live)

    async def respond(self, request: Request, receive: Receive) -> Response | LiveResponse:
        """One request. Raises ClientLeft, and BadRequest for what names nothing here. Else a failure names its ids."""
        target = target_of(request.method, request.path)
        try:
            return await self._respond(request, target, receive)
        except ClientLeft:
            raise
        except Exception as error:  # noqa: BLE001 -- `answer_error` tells them apart
            return answer_error(error, request.request_id, self._traffic, answers.about(target))

    async def _respond(self, request: Request, target: Target, receive: Receive) -> Response | LiveResponse:
        if target.part == "ui-stream":
            return await unless_client_leaves(self._ui_streams.get(request, target), receive)
        if request.method == "GET" and target.part == "messages":
            return await self._messages(request, target)
        if target.action == "upload":
            raise BadRequest(Code.UPGRADE_REQUIRED, headers=((b"upgrade", b"websocket"), (b"connection", b"upgrade")))
        if target.part == "txids":
            return await unless_client_leaves(self._txids.get(request, target), receive)
        if request.method == "GET":
            requests.require_no_parameters(request)
            return await self._read(request, target)
        return await self._write(request, target, await self._bodies.read(request.headers, receive))

    async def _write(self, request: Request, target: Target, body: bytes) -> Response:
        if target.part == "fork":
            return await self._forks.fork(request, target, body)
        if request.method == "POST" and flat_writes.is_flat(target):
            return await self._write_flat(request, target, body)
        if target.part == "import":
            return await self._imports.make(request, target, body)
        entry = requests.entry_of(request, target, body)
        # The client may leave from here on: what is proposed is done all the same.
        if self._async_acks.apply_to(request, entry):
            return await self._async_acks.accept(target, entry)
        if entry.kind == Kind.FINISH and (lost := await self._async_acks.lost_before(target, entry)):
            return lost
        outcome = await self._partition.propose(entry)
        if entry.kind in _ENDS_A_LIFE and outcome.changed:
            await self._partition.settle(target.path)
        return answers.answer(target, entry, outcome, self._partition.durability)

    async def _write_flat(self, request: Request, target: Target, body: bytes) -> Response:
        named, entry = flat_writes.entry_of(request, target, body)
        if entry.kind == Kind.FINISH and (lost := await self._async_acks.lost_before(named, entry)):
            return lost
        try:
            outcome = await self._partition.propose(entry)
        except BrokerError as error:
            return flat_writes.failure(entry, named, error)
        return answers.answer(named, entry, flat_writes.seen_by_flat_writers(outcome), self._partition.durability)

    async def _read(self, request: Request, target: Target) -> Response:
        session = await self._partition.session(target.path)
        if target.part == "generations":
            generation = await self._partition.generation(target.path, target.part_id)
            return answers.generation_answer(request, target, session, generation)
        stream = await self._partition.stream(target.path)
        return answers.session_answer(request, target, session, stream)

    async def _messages(self, request: Request, target: Target) -> Response:
        query = asked.query_of(request, target)
        stream = await self._partition.stream(target.path)
        if stream is None or stream.deleted:
            return answers.not_found(Code.SESSION_NOT_FOUND, request, target)
        position = asked.position_asked_for(query, stream)
        known = asked.unchanged(request, target, stream, stream.tail if position is None else position)
        if known is not None:
            return known
        if position is None:
            messages = await self._materializer.messages(target.path)
        else:
            messages = await self._materializer.messages_at(target.path, stream, position)
        if messages is None:
            return answers.not_found(Code.SESSION_NOT_FOUND, request, target)
        return await asked.messages_answer(request, target, query, messages)
