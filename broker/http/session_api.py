"""`/v1/sessions/{session id}` and what is under it, over one partition and its materializer.

What there is, is in `session_routes`; the decisions are in `session_requests` and `session_answers`; here is the order
of the steps.
"""

from __future__ import annotations

from typing import Final

from broker.http import session_answers as answers, session_requests as requests
from broker.http.bodies import Bodies
from broker.http.request import Receive, Request
from broker.http.response import Response
from broker.http.session_routes import PREFIX as ROUTES_PREFIX, Target, target_of
from broker.materializer import Materializer
from broker.partition import Partition

PREFIX: Final = ROUTES_PREFIX.encode()


class SessionApi:
    """See the module."""

    def __init__(self, partition: Partition, bodies: Bodies, materializer: Materializer) -> None:
        self._partition = partition
        self._bodies = bodies
        self._materializer = materializer

    async def respond(self, request: Request, receive: Receive) -> Response:
        """One request. Raises BadRequest, BrokerError, ClientLeft."""
        target = target_of(request.method, request.path)
        if request.method == "GET":
            requests.require_no_parameters(request)
            return await self._read(request, target)
        body = await self._bodies.read(request.headers, receive)
        entry = requests.entry_of(request, target, body)
        # The client may leave from here on: what is proposed is done all the same.
        outcome = await self._partition.propose(entry)
        return answers.answer(target, entry, outcome, self._partition.durability)

    async def _read(self, request: Request, target: Target) -> Response:
        if target.part == "messages":
            return answers.messages_answer(request, target, await self._materializer.messages(target.path))
        session = await self._partition.session(target.path)
        if target.part == "generations":
            generation = await self._partition.generation(target.path, target.part_id)
            return answers.generation_answer(request, target, session, generation)
        stream = await self._partition.stream(target.path)
        return answers.session_answer(request, target, session, stream)
