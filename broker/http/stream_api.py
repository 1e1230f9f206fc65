"""`/v1/stream/{path}`: the Durable Streams protocol over one partition.

The decisions are in `streams` and `reads`; here is the order of the steps.
"""

from __future__ import annotations

from typing import Final

from broker import limits
from broker.core.fork import unref_entry
from broker.core.outcome import Result
from broker.http import forks, streams
from broker.http.bodies import Bodies
from broker.http.endpoint import unless_client_leaves
from broker.http.live_readers import LiveReaders
from broker.http.problems import BadRequest
from broker.http.reads import Pending, Reads
from broker.http.request import Receive, Request
from broker.http.response import LiveResponse, Response
from broker.partitions import Partitioned
from broker.settings import Settings
from consumer.wire import Code

PREFIX: Final = b"/v1/stream/"
_RESERVED: Final = "__ds"


class StreamApi:
    """See the module."""

    def __init__(self, partition: Partitioned, settings: Settings, bodies: Bodies, live: LiveReaders) -> None:
        self._partition = partition
        self._bodies = bodies
        self._reads = Reads(partition, settings, live)

    async def respond(self, request: Request, receive: Receive) -> Response | LiveResponse:
        """One request. Raises BadRequest, BrokerError, ClientLeft."""
        if is_reserved(request.path):
            raise BadRequest(Code.NOT_FOUND)  # its own API has all that there is, under its plain name
        streams.require_method(request.method, request.path)
        if request.method == "GET":
            read = await self._reads.get(request)
            return await unless_client_leaves(read.response, receive) if isinstance(read, Pending) else read
        if request.method == "HEAD":
            return await self._reads.head(request)
        return await self._write(request, receive)

    async def _write(self, request: Request, receive: Receive) -> Response:
        body = await self._bodies.read(request.headers, receive)
        if request.method == "PUT" and forks.is_fork(request):
            return await self._fork(request, body)
        entry = streams.entry_of(request, body)
        # The client may leave from here on: what is proposed is done all the same.
        outcome = await self._partition.propose(entry)
        return streams.answer(request, entry, outcome, self._partition.durability)

    async def _fork(self, request: Request, body: bytes) -> Response:
        """Ask the source, then make the child; if that fails, the source is told before the client is."""
        partition = self._partition
        taken = await partition.stream(request.path)
        entry = forks.confirm_of(request) if taken is not None else forks.ref_of(request, partition.now_ms())
        outcome = await partition.propose(entry)
        source, position = outcome.stream, outcome.next_position
        if taken is not None or outcome.result is Result.REFUSED or source is None or position is None:
            return streams.answer(request, entry, outcome, partition.durability)
        ref = entry
        try:
            entry = forks.fork_of(request, body, ref, source, position)
            outcome = await partition.propose(entry)
        except BadRequest:
            await partition.propose(unref_entry(ref.path, source.incarnation, request.path, ref.nonce))
            raise
        if outcome.result is not Result.CREATED:
            await partition.propose(unref_entry(ref.path, source.incarnation, request.path, ref.nonce))
        return streams.answer(request, entry, outcome, partition.durability)


def is_reserved(path: str) -> bool:
    """Whether a path belongs to the protocol itself, not to an application (PROTOCOL.md 6)."""
    return path == _RESERVED or path.startswith(f"{_RESERVED}/")


def live_s_max(settings: Settings) -> float:
    """How long a live response may take at most: an SSE connection's life, and a while for a reader that stalls."""
    return settings.sse_life_s * 1.1 + limits.SSE_STALL_S
