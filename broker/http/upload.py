"""An upload in progress: batches of one generation over one connection, acknowledged as they become durable.

The same for every way that batches come in; `ndjson` and `websocket` only say how a batch and an ack look on the wire.
Batches are proposed as they arrive and in their order, without waiting for one another's commit, within a window. Acks
are cumulative, so only the newest matters: a client that reads slowly gets fewer of them.

Two tasks and what they wait for cost more than a batch of one token. So where nothing is out of the ordinary batches
are taken (`put_at_once`) and acks told (`tell_with`) without them, if the connection can do that: see `direct`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from broker import limits
from broker.core.entry import Entry, Kind
from broker.core.outcome import Outcome, Result
from broker.core.page import Page, records
from broker.core.state import Generation
from broker.errors import BrokerError, EngineStopped, Unavailable
from broker.http import session_answers as answers, session_requests as requests
from broker.http.acks import Acks
from broker.http.endpoint import answer_error
from broker.http.problems import BadRequest
from broker.http.request import ClientLeft, Request
from broker.http.response import Response
from broker.http.session_fields import write_parameters
from broker.http.session_routes import Target
from broker.proposals import ProposerWaits
from consumer.plain import JSONObject
from consumer.wire import ENDED, Reason

if TYPE_CHECKING:
    from broker.http.uploads import Uploads


Tell = Callable[[bytes], bool]
"""Tells an ack, as JSON, at once, if the connection takes it; False: it has not been told, and has to wait."""


_CHUNKS: Final = Kind.CHUNKS.value  # a member costs a call each time that it is named


class Finished(msgspec.Struct, frozen=True):
    """The client has no more to say, and all that it said is durable. `answer` is its finish's, if that came too."""

    answer: Response | None = None


End = Response | Finished
"""How an upload ends: a problem, or well."""


def leaving() -> Unavailable:
    """Why an upload ends when the broker does."""
    return Unavailable("the broker is shutting down")


class Upload:
    """See the module.

    Whoever reads from the client calls `put`, `finish`, `keep_alive` and at last `close`; whoever writes to it awaits
    `news`. `run` runs both.
    """

    def __init__(self, uploads: Uploads, request: Request, target: Target) -> None:
        self.request = request
        self.target = target
        self.in_flight = 0
        """Entries proposed of which nothing was heard: at most `limits.UPLOAD_IN_FLIGHT_MAX`."""
        self.flying = 0
        """As in `Proposer`."""
        self.acks = Acks(target.session_id)
        self._uploads = uploads
        self._partition = uploads.partition
        self._gathering = uploads.gathering
        self._parameters = write_parameters(request.query)
        self._batches: requests.Batches | None = None  # made for the first: it is that which is wrong where they are
        self._in_flight_bytes = 0
        self._generation: Generation | None = None  # as of the newest outcome
        self._ack_told = True
        self._has_claim = False  # on its rows, all of which are in memory
        self._end: End | None = None  # told once nothing is in flight
        self._failure: BadRequest | BrokerError | None = None  # told with all ids that are known by then
        self._left = False
        self._refused = False  # something in flight was, so what was proposed behind it is not acknowledged
        self._loop = asyncio.get_running_loop()  # asking for it each time asks the system for the process
        self._keep_alive_s = 0.0  # on the loop's clock: when the lease is to be renewed next
        self._tell: Tell | None = None
        self._tells_soon = False  # once all of a commit is answered: the newest of all that is acknowledged in it
        self._changed = asyncio.Event()  # for `news`
        self._settled = asyncio.Event()  # something in flight is no more, or this is over
        self._quiet = asyncio.Event()  # nothing is in flight any more, or this is over
        self._reading: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None  # runs from the end on

    async def run(self, read: Callable[[], Awaitable[None]], write: Callable[[], Awaitable[None]]) -> None:
        """Carry it out: until `write` returns, the client leaves, or it takes nothing for too long after the end.

        `write` belongs to the caller. What `read` raises ends the upload: ClientLeft for nobody to hear, anything else
        as the problem that it is.
        """
        self._reading = asyncio.create_task(self._guarded(read))
        watching = asyncio.create_task(self._guarded(self._watch))
        try:
            async with asyncio.timeout(None) as self._patience:
                await write()
        except TimeoutError:
            return
        finally:
            self._left = True
            watching.cancel()
            await self.stop_reading()
            await asyncio.gather(watching, return_exceptions=True)

    async def stop_reading(self) -> None:
        """`read` reads no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except ClientLeft:
            self.leave()
        except Exception as error:  # noqa: BLE001 -- `fail` tells them apart
            self.fail(error)

    # -- for whoever reads -------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing more is taken."""
        return self._end is not None or self._left

    async def put(self, seq: int, body: bytes) -> None:
        """Take batch `seq`: a chunk, or an array of chunks. Waits for room. Raises BadRequest, BrokerError."""
        try:
            entry = (self._batches or self._begin_batches()).batch(seq, body)
        except BadRequest as error:
            raise BadRequest(error.code, f"batch {seq}: {error.detail}") from None
        await self._propose(entry)

    def put_at_once(self, first_seq: int, bodies: Sequence[bytes]) -> bool:
        """Take batches, if all of them make sense and there is room for them now; False: none has been taken."""
        if first_seq <= 0:  # it opens the generation, and needs more rows than those behind it
            return False
        try:
            batches = self._batches or self._begin_batches()
            entries = [batches.batch(seq, body) for seq, body in enumerate(bodies, first_seq)]
        except BadRequest:
            return False
        in_flight, size_bytes = self.in_flight, self._in_flight_bytes
        for entry in entries:
            in_flight += 1
            size_bytes += len(entry.body)
        if (
            self._end is not None
            or self._left
            or in_flight > limits.UPLOAD_IN_FLIGHT_MAX
            or size_bytes > limits.UPLOAD_IN_FLIGHT_BYTES_MAX
            or not self._partition.has_room(entry)
            or not (self._has_claim or self._claim(entry))
        ):
            return False
        self.in_flight, self._in_flight_bytes = in_flight, size_bytes
        for entry in entries:
            self._gathering.add(self, entry)
        return True

    def _claim(self, entry: Entry) -> bool:
        self._has_claim = self._partition.claim(self, entry)
        return self._has_claim

    def _begin_batches(self) -> requests.Batches:
        self._batches = requests.Batches(self.request, self.target, self._parameters)
        return self._batches

    async def finish(self, seq: int, body: bytes) -> None:
        """Take the generation's finish, batch `seq`; when it is durable, that is the end. Raises as `put`."""
        entry = requests.finish_of(self.request, self.target, self._parameters, seq, body)
        lost = await self._uploads.async_acks.lost_before(self.target, entry)
        if lost is not None:
            self._refuse(lost)
        else:
            await self._propose(entry)

    async def keep_alive(self) -> None:
        """The client says that it is there: renew the lease of the generation, where that is due. Raises as `put`."""
        if self._generation is not None and self._loop.time() >= self._keep_alive_s:
            await self._renew()

    def close(self) -> None:
        """The client has said all; this ends well once it is durable."""
        if self._end is None:
            self._set_end(Finished())

    def fail(self, error: Exception) -> None:
        """End with `error`, once what is in flight is settled; what that says, or an end that there is, comes first."""
        if self._end is None:
            if isinstance(error, BadRequest | BrokerError):
                # Where it comes from would hold all that was made of a body there, until the collector comes by.
                error.__context__ = None
                self._failure = error.with_traceback(None)
            self._set_end(self.problem(error))

    def leave(self) -> None:
        """The client is gone: nobody is to be told anything."""
        self._left = True
        self._wake()

    # -- for whoever writes ------------------------------------------------------------------------------------------

    async def news(self) -> bytes | End | None:
        """What is to be told next: the newest ack, in JSON, or the end behind the last; None when the client left."""
        while True:
            self._changed.clear()
            if self._left:
                return None
            at_end = self._end is not None and not self.in_flight
            if at_end and isinstance(self._end, Finished):
                return self._end
            if not self._ack_told:
                self._ack_told = True
                return self.acks.newest()
            if at_end:
                return self._end if self._failure is None else self.problem(self._failure)
            await self._changed.wait()

    def tell_with(self, tell: Tell) -> None:
        """From here on `tell` gets acks, unless it does not take them; the end, and what it leaves, are `news`."""
        self._tell = tell

    async def stop_request(self) -> JSONObject | None:
        """Who asked for the stop that ended the generation, and why; None where none did."""
        generation = self._generation
        if generation is None or generation.reason != Reason.STOPPED or self.acks.seq < 0:
            return None
        stream = await self._partition.stream(self.target.path)
        if stream is None or stream.incarnation != generation.incarnation:
            return {}
        page = await self._partition.read(self.target.path, stream, self.acks.position, limits.READ_BYTES_MAX)
        return {} if page is None else _stop_in(page, generation.generation_id)

    def problem(self, error: Exception) -> Response:
        """What the client is told of an error, with the ids of what it writes."""
        message_id = "" if self._generation is None else self._generation.message_id
        form = answers.about(self.target, message_id)
        return answer_error(error, self.request.request_id, self._uploads.traffic, form)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _propose(self, entry: Entry) -> None:
        while self._is_full(entry) and not self.is_over:
            self._settled.clear()
            await self._settled.wait()
        if not self._partition.has_room(entry):
            await self._partition.wait_for_room(entry)
        if not self.is_over:
            self._propose_now(entry)

    def _propose_now(self, entry: Entry) -> None:
        self._gathering.flush()
        self.in_flight += 1
        self._in_flight_bytes += len(entry.body)
        try:
            self._partition.propose_for(ProposerWaits(self, entry), entry)
        except EngineStopped:
            self._settle(entry)
            raise

    def _is_full(self, entry: Entry) -> bool:
        size_bytes = self._in_flight_bytes + len(entry.body)
        return self.in_flight >= limits.UPLOAD_IN_FLIGHT_MAX or (
            self.in_flight > 0 and size_bytes > limits.UPLOAD_IN_FLIGHT_BYTES_MAX
        )

    def told(self, entry: Entry, outcome: Outcome) -> None:
        """What an entry did. Never raises: others wait behind this."""
        if not self._refused:
            try:
                self._take(entry, outcome)
            except Exception as error:  # noqa: BLE001 -- a bug of ours, and this upload's alone
                self._refuse(self.problem(error))
        self._settle(entry)

    def told_error(self, entry: Entry, error: Exception) -> None:
        """Why there is no outcome. Never raises, as above."""
        if not self._refused:
            self._refuse(self.problem(error))
        self._settle(entry)

    def _take(self, entry: Entry, outcome: Outcome) -> None:
        generation = outcome.generation
        if generation is not None:
            self._generation = generation
        if outcome.result is Result.REFUSED:
            self._refuse(self._answer(entry, outcome))
            return
        if generation is None:  # an accepted write always has one
            raise TypeError(f"an outcome of kind {entry.kind} without its generation")
        if not self._tells_soon:
            self._tells_soon = True
            self._uploads.tell_soon(self)
        if entry.kind == _CHUNKS:
            self._uploads.batches += 1
            if entry.seq > self.acks.seq:
                self.acks.add(entry, outcome, generation)
                self._ack_told = False
        elif entry.kind == Kind.FINISH:
            self._uploads.batches += 1
            self._set_end(Finished(self._answer(entry, outcome)))

    def _answer(self, entry: Entry, outcome: Outcome) -> Response:
        return answers.answer(self.target, entry, outcome, self._partition.durability)

    def _refuse(self, response: Response) -> None:
        """What was proposed first has been refused: that is how this ends, whatever came to the reader's mind since."""
        self._refused, self._failure = True, None
        self._uploads.refusals += 1
        self._set_end(response)

    def _set_end(self, end: End) -> None:
        self._end = end
        if self._left:
            return  # nobody is to be told, and `run` may be over
        if self._patience is not None and self._patience.when() is None:
            self._patience.reschedule(self._loop.time() + limits.UPLOAD_STALL_S)
        self._wake()

    def _settle(self, entry: Entry) -> None:
        self.in_flight -= 1
        self._in_flight_bytes -= len(entry.body)
        self._settled.set()
        if not self.in_flight:
            self._quiet.set()
        if self._end is not None or self._left:
            self._wake()
            self._let_go()

    def tell(self, now_s: float) -> None:
        """All of a commit is answered: tell the newest ack, `now_s` on the loop's clock. Never raises, as `told`."""
        self._tells_soon = False
        if self._generation is not None:
            self._keep_alive_s = now_s + self._generation.lease_ms / 3000
        if self._ack_told:
            return
        try:
            if self._tell is not None and self._end is None and not self._left:
                self._ack_told = self._tell(self.acks.newest())
        except Exception as error:  # noqa: BLE001 -- a bug of ours, and this upload's alone
            self._refuse(self.problem(error))
        if not self._ack_told:
            self._changed.set()

    def _wake(self) -> None:
        self._changed.set()
        self._settled.set()
        self._quiet.set()

    def end(self) -> None:
        """Nobody reads or writes any more; what is in flight may still be told."""
        self._left = True
        self._let_go()

    def _let_go(self) -> None:
        if self._left and not self.in_flight:
            self._partition.let_go(self)

    async def _watch(self) -> None:
        """End this when its generation ends while nothing is in flight that would be told so.

        Not where it had ended before: then these are copies of what was accepted, and they are told that.
        """
        path = self.target.path
        while True:
            known = self._generation
            if self.is_over or (known is not None and known.status in ENDED):
                return
            if known is None or self.in_flight:
                self._quiet.clear()
                await self._quiet.wait()
                continue
            now = await self._partition.generation(path, known.generation_id)
            if self._partition.draining:
                raise leaving()
            if now is None or now.status in ENDED:
                await self._renew()  # its refusal says all that there is to say
            else:
                await self._partition.wait_for_end(path, known.generation_id, limits.UPLOAD_WATCH_S)

    async def _renew(self) -> None:
        await self._propose(requests.heartbeat_of(self.request, self.target))


def error_of(response: Response) -> bytes:
    """The JSON object that tells of a refusal in the midst of an upload."""
    return b'{"error":%b}' % response.body


def _stop_in(page: Page, generation_id: str) -> JSONObject:
    """What the stop record of a generation says of who and why."""
    begins = b'{"type":"stop","key":"%b"' % generation_id.encode()
    for record in records(page):
        if record.startswith(begins):
            told: JSONObject = msgspec.json.decode(record)["value"]
            return {name: told[name] for name in ("requestedBy", "reason") if name in told}
    return {}
