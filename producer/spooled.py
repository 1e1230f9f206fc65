"""One generation that is written to the spool, as an asynchronous context manager."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import anyio

from consumer.errors import ChunkTooLarge, ClientError, Finished, SpoolError
from consumer.wire import Status
from producer.coalesce import Merging
from producer.encoding import encode_chunk
from producer.ending import Finish, end_because, finish_of
from producer.forwarder import Forwarder
from producer.limits import Limits
from producer.opening import Opened, Opening
from producer.outbox import Outbox

__all__ = ["SpooledGeneration"]


class SpooledGeneration(Opened):
    """Write chunks inside `async with`; made by `Producer.spooled`.

    `write` and `finish` return when the spool has what they were given: it survives this process, a power loss, and any
    time without a network, and the broker gets it once and in order, as soon as it can be reached. Whoever wants to
    know when that is so waits for `delivered`.

    After a crash the application enters the same generation again: `written_chunks` says how many chunks are kept, and
    it writes on from there. Nothing is written twice. Should the lease have run out meanwhile, what was not delivered
    goes on in a new generation of the same message (`continues`), without the application's doing.

    Leaving the context ends the generation as `Generation` does, in the spool: `complete`, `failed` or `aborted`. Only
    a killed process leaves one open.

    Somebody else may end it: then `error` is Fenced, `write` raises it, and what was not delivered is dropped. If the
    broker refuses it for good, `error` says why, and what is left is kept (`Outbox.refused`).
    """

    def __init__(self, outbox: Outbox, opening: Opening, limits: Limits, merging: Merging) -> None:
        self._outbox = outbox
        self._opening = opening
        self._limits = limits
        self._merging = merging
        self._entered: Forwarder | None = None
        self._ended = False
        self.written_chunks = 0
        """In the spool or delivered, over all processes."""

    @property
    def error(self) -> ClientError | None:
        """Why it will not be delivered any further; None while that is not known, being offline included."""
        return self._forwarder.error

    async def write(self, chunk: Any) -> None:
        """Put a chunk into the spool: any JSON value in the generation's format. Returns when it is durable there.

        When cancelled, it may be kept or not: `written_chunks` of the next process tells. Raises TypeError if it is no
        JSON, ChunkTooLarge, SpoolFull (none of these does harm), Fenced or what the broker refused it with, another
        SpoolError, and Finished after `finish`.
        """
        self._check()
        encoded = encode_chunk(chunk)
        if len(encoded) > self._limits.chunk_bytes_max:
            raise ChunkTooLarge(f"a chunk of {len(encoded)} bytes; {self._limits.chunk_bytes_max} are allowed")
        await self._outbox.add(self._forwarder.kept_id, encoded)
        self.written_chunks += 1
        self._forwarder.notify()

    async def finish(
        self,
        status: Status | str = Status.COMPLETE,
        *,
        reason: str | None = None,
        error: Any = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """End the generation. Returns when that is in the spool; leaving the context afterwards does nothing more.

        Raises what `write` raises, ValueError if `status` is no end, and TypeError if a value is no JSON.
        """
        finish = finish_of(status, reason=reason, error=error, usage=usage, metadata=metadata)
        self._check()
        await self._end(finish)

    async def delivered(self, within_s: float = math.inf) -> None:
        """Wait until the broker has everything that was written, and the end, if that was told.

        Raises Unavailable if that took longer than `within_s` (the spool keeps it, and the delivery goes on), else
        `error`.
        """
        await self._outbox.delivered(self._forwarder, within_s)

    async def __aenter__(self) -> Self:
        if self._entered is not None:
            raise RuntimeError("a generation can be entered once; make another, with the same ids if it is the same")
        kept, self._entered = await self._outbox.begin(self._opening, self._merging)
        self.written_chunks = kept.written
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ended or self.error is not None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self._end(finish_of(**end_because(error)))
        except SpoolError as spool_error:
            if error is None:
                raise
            error.add_note(f"the end of generation {self.generation_id} could not be kept: {spool_error}")

    async def _end(self, finish: Finish) -> None:
        await self._outbox.tell_end(self._forwarder.kept_id, finish)
        self._ended = True
        self._forwarder.notify()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
        if self._ended:
            raise Finished("its own caller has ended it")

    @property
    def _forwarder(self) -> Forwarder:
        if self._entered is None:
            raise RuntimeError("use the generation inside 'async with'")
        return self._entered
