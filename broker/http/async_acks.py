"""202: batches of a generation that are answered before they are durable (RFC 7240, `Prefer: respond-async`).

Only where the operator allows it. What then fails is remembered for its generation: that gets no further 202, and its
finish fails with what was lost. Nothing has to be remembered over a crash: what is not in the log leaves a gap in the
generation's sequence, and no finish is accepted behind a gap.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

import msgspec

from broker import limits
from broker.core.entry import NEXT_SEQ, Entry, GenerationOptions, Kind, body_digest, encode_options
from broker.core.outcome import Outcome, Result
from broker.core.state import Generation
from broker.errors import Unavailable
from broker.http import session_answers as answers
from broker.http.request import Request
from broker.http.response import Response
from broker.http.session_routes import Target
from broker.partitions import Partitioned
from consumer.plain import encode
from consumer.wire import ENDED, Code, Reason, Status

_Key = tuple[str, str]
"""The path of a session, and a generation of it."""

_RESPOND_ASYNC: Final = b"respond-async"


class Loss(msgspec.Struct, frozen=True, gc=False):
    """Batches, first to last, that were accepted and are not in the log; `code` says why the first is not."""

    first_seq: int
    last_seq: int
    code: str


class AsyncAcks:
    """Those of one broker. `is_allowed` is the operator's."""

    def __init__(self, partition: Partitioned, *, is_allowed: bool, losses_max: int = limits.LOSSES_MAX) -> None:
        self.accepted = 0
        """Batches answered with 202."""
        self.lost = 0
        """Of these, batches that did not become durable."""
        self._partition = partition
        self._is_allowed = is_allowed
        self._losses_max = losses_max
        self._losses: dict[_Key, Loss] = {}  # oldest first
        self._in_flight: Counter[_Key] = Counter()  # accepted, and nothing was heard of it yet
        self._settled = asyncio.Event()

    def apply_to(self, request: Request, entry: Entry) -> bool:
        """Whether this write is answered before it is durable.

        Never while every write is to have its own commit: that switch is for those who trust nothing else any more.
        """
        return (
            self._is_allowed
            and entry.kind == Kind.CHUNKS
            and _prefers_async(request)
            and not self._partition.synchronous
            and _key(entry) not in self._losses
        )

    async def accept(self, target: Target, entry: Entry) -> Response:
        """Propose a batch, and say 202; what is certain already is said instead. Raises BrokerError."""
        if not self._partition.has_room(entry):
            await self._partition.wait_for_room(entry)
        accepted = _Accepted(self, _key(entry), entry)
        # After a 202 a refusal is a loss: one that can be told, a gap above all, is told.
        self._partition.propose_for(accepted, entry, looks_ahead=True)
        if accepted.error is not None:
            raise accepted.error
        if accepted.outcome is not None:
            return answers.answer(target, entry, accepted.outcome, self._partition.durability)
        accepted.is_answered = True
        self.accepted += 1
        self._in_flight[_key(entry)] += 1
        return answers.accepted_answer(target, entry, await self._partition.generation(*_key(entry)))

    async def lost_before(self, target: Target, entry: Entry) -> Response | None:
        """What a finish is told when accepted batches before it are lost; None where it may be proposed.

        Then the generation has ended as failed, and its terminal record has the range. Raises BrokerError.
        """
        key = _key(entry)
        await self._settle(key)
        loss = self._losses.get(key)
        if loss is None:
            return None
        generation = await self._partition.generation(*key)
        loss = _still_lost(loss, generation, entry.seq)
        if loss is None:
            return None
        if generation is not None:
            outcome = await self._partition.propose(_failed(entry, generation, loss))
            if outcome.result is Result.REFUSED:  # somebody was quicker: the finish hears how it ended
                return None
        self._losses.pop(key, None)
        return answers.lost_answer(target, entry, generation, loss.first_seq, loss.last_seq)

    async def _settle(self, key: _Key) -> None:
        """Return once something was heard of all that was accepted."""
        try:
            async with asyncio.timeout(limits.FINISH_S):
                while self._in_flight[key]:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise Unavailable("batches before this finish are still on their way") from None

    def settled(self, key: _Key, entry: Entry, code: Code | None, first_seq: int) -> None:
        """An accepted batch is durable, or (`code`) is not, and with it nothing from `first_seq` on."""
        self._in_flight[key] -= 1
        if not self._in_flight[key]:
            del self._in_flight[key]
        self._settled.set()
        if code is None:
            return
        self.lost += 1
        known = self._losses.pop(key, None) or Loss(first_seq, entry.seq, code.value)
        self._losses[key] = msgspec.structs.replace(known, last_seq=max(known.last_seq, entry.seq))
        if len(self._losses) > self._losses_max:
            # Safe: the gap in its sequence stays, and its finish is told of that instead.
            del self._losses[next(iter(self._losses))]


class _Accepted:
    """A `partition.Waiter` of a batch that may have been answered already."""

    __slots__ = ("_acks", "_entry", "_key", "error", "is_answered", "outcome")

    def __init__(self, acks: AsyncAcks, key: _Key, entry: Entry) -> None:
        self._acks = acks
        self._key = key
        self._entry = entry
        self.is_answered = False
        self.outcome: Outcome | None = None
        self.error: Exception | None = None

    def done(self) -> bool:
        return False

    def set_result(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if not self.is_answered:
            return
        refused = outcome.result is Result.REFUSED
        first_seq = self._entry.seq if outcome.expected_seq is None else min(outcome.expected_seq, self._entry.seq)
        self._acks.settled(self._key, self._entry, outcome.code if refused else None, first_seq)

    def set_exception(self, error: Exception) -> None:
        self.error = error
        if self.is_answered:
            self._acks.settled(self._key, self._entry, Code.UNAVAILABLE, self._entry.seq)


def _key(entry: Entry) -> _Key:
    return entry.path, msgspec.msgpack.decode(entry.options, type=GenerationOptions).generation_id


def _prefers_async(request: Request) -> bool:
    preferences = request.headers.get(b"prefer", b"").lower().split(b",")
    return any(preference.partition(b";")[0].strip() == _RESPOND_ASYNC for preference in preferences)


def _still_lost(loss: Loss, generation: Generation | None, finish_seq: int) -> Loss | None:
    """What is lost when the finish comes: all that it counts and the log has not. Nothing, if it was sent again since.

    Another batch than the one accepted under its seq leaves no gap; it stays lost. A finish without a number counts all
    that was accepted.
    """
    if finish_seq == NEXT_SEQ:
        finish_seq = loss.last_seq + 1
    if generation is None:
        return Loss(0, finish_seq - 1, loss.code) if finish_seq else None
    if generation.status in ENDED:
        return None
    if finish_seq > generation.sequence.seq + 1:
        return Loss(generation.sequence.seq + 1, finish_seq - 1, loss.code)
    return loss if loss.code == Code.PAYLOAD_MISMATCH else None


def _failed(finish: Entry, generation: Generation, loss: Loss) -> Entry:
    """The end of a generation that has lost batches, in place of its finish."""
    error = encode({"code": Code.LOST_CHUNKS.value, "firstSeq": loss.first_seq, "lastSeq": loss.last_seq})
    options = GenerationOptions(
        generation.generation_id, status=Status.FAILED.value, reason=Reason.LOST_CHUNKS.value, error=error
    )
    return Entry(
        Kind.FINISH,
        finish.path,
        seq=generation.sequence.seq + 1,
        digest=body_digest(error),
        request_id=finish.request_id,
        traceparent=finish.traceparent,
        options=encode_options(options),
    )
