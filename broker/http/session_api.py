"""`/v1/sessions/{session id}` and what is under it, over one partition and its materializer.

The decisions are in `sessions`; here is the order of the steps.
"""

from __future__ import annotations

from typing import Final

from broker.http import sessions
from broker.http.request import Receive, Request, read_body
from broker.http.response import Response
from broker.materializer import Materializer
from broker.partition import Partition
from broker.settings import Settings

PREFIX: Final = b"/v1/sessions/"


class SessionApi:
    """See the module."""

    def __init__(self, partition: Partition, settings: Settings, materializer: Materializer) -> None:
        self._partition = partition
        self._body_bytes_max = settings.body_bytes_max
        self._materializer = materializer

    async def respond(self, request: Request, receive: Receive) -> Response:
        """One request. Raises BadRequest, BrokerError, ClientLeft."""
        target = sessions.target_of(request.path)
        sessions.require_method(request.method, target)
        if request.method == "GET":
            sessions.require_no_parameters(request)
            return await self._read(request, target)
        body = await read_body(request.headers, receive, self._body_bytes_max)
        entry = sessions.entry_of(request, target, body)
        # The client may leave from here on: what is proposed is done all the same.
        outcome = await self._partition.propose(entry)
        return sessions.answer(target, entry, outcome, self._partition.durability)

    async def _read(self, request: Request, target: sessions.Target) -> Response:
        if target.part == "messages":
            return sessions.messages_answer(request, target, await self._materializer.messages(target.path))
        session = await self._partition.session(target.path)
        if target.part == "generations":
            generation = await self._partition.generation(target.path, target.part_id)
            return sessions.generation_answer(request, target, session, generation)
        stream = await self._partition.stream(target.path)
        return sessions.session_answer(request, target, session, stream)
