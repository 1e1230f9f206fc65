"""Batches over one connection that lasts as long as the answer; what kind of connection is another module's matter.

One connection keeps the order, so many batches may be under way without overtaking each other, and one acknowledgement
stands for all before it. What is not acknowledged when the connection breaks fails, and is sent again by the window,
oldest first, over the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from consumer.errors import AttemptFailed, ClientError
from producer.batcher import Batch
from producer.guard import GuardedTransport
from producer.signal import Signal
from producer.uploads import Connect, Connection, Receipt

__all__ = ["Silence", "StreamingUpload"]


class _Waiting:
    """A batch that is not acknowledged."""

    __slots__ = ("batch", "done", "error", "is_sent", "receipt")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.is_sent = False
        self.done = anyio.Event()
        self.receipt: Receipt | None = None
        self.error: ClientError | None = None


class Silence(AttemptFailed):
    """Nothing was acknowledged for as long as an answer may take, though the connection stands."""


class _OutOfTurn(AttemptFailed):
    """The connection has got to another seq than the next batch has: a new one is needed."""


class StreamingUpload:
    """An Upload; `run` owns the connection."""

    def __init__(
        self,
        connect: Connect,
        guard: GuardedTransport,
        told: Callable[[ClientError], None],
        *,
        attempt_timeout_s: float,
    ) -> None:
        self._connect = connect
        self._guard = guard
        self._told = told
        self._attempt_timeout_s = attempt_timeout_s
        self._waiting: dict[int, _Waiting] = {}
        self._changed = Signal()
        """Rings when a batch was given, or acknowledged."""
        self._scope = anyio.CancelScope()
        """Of the connection that is open."""
        self._wants_rest = False
        self.has_worked = False
        """Something was acknowledged over it."""

    async def send(self, seq: int, batch: Batch) -> Receipt:
        """See Upload."""
        self._guard.check()
        waiting = self._waiting[seq] = _Waiting(batch)
        self._changed.ring()
        try:
            with anyio.move_on_after(self._attempt_timeout_s):
                await waiting.done.wait()
        finally:
            if self._waiting.get(seq) is waiting:
                del self._waiting[seq]
        if waiting.error is not None:
            raise waiting.error
        if waiting.receipt is None:
            self._scope.cancel()  # what else is on this connection will not be heard of either
            self._guard.failed()
            raise Silence(f"no acknowledgement within {self._attempt_timeout_s:g} s")
        return waiting.receipt

    async def run(self) -> None:
        """See Upload."""
        while True:
            while not self._waiting:
                await self._changed.wait()
            try:
                await self._one_connection()
            except ClientError as error:
                self._fail(error)

    async def rest(self) -> None:
        """Close the connection once everything given so far is acknowledged: what follows travels in another way."""
        while self._waiting:
            await self._changed.wait()
        self._wants_rest = True
        self._changed.ring()

    async def _one_connection(self) -> None:
        """Raises why it ended, unless nobody waits for anything."""
        self._wants_rest = False
        first = min(self._waiting)
        lost = Silence("the connection was given up: nothing was heard")
        with anyio.CancelScope() as self._scope:
            connection = await self._opened(first)
            try:
                async with anyio.create_task_group() as tasks:
                    errors: list[ClientError] = []
                    tasks.start_soon(self._guarded, tasks.cancel_scope, errors, self._read, connection)
                    await self._guarded(tasks.cancel_scope, errors, self._write, connection, first)
            finally:
                with anyio.CancelScope(shield=True):
                    await connection.aclose()
            if errors:
                raise errors[0]
            if not self._wants_rest:
                raise lost
            return
        raise lost

    async def _opened(self, first: int) -> Connection:
        with anyio.move_on_after(self._attempt_timeout_s):
            return await self._connect(first)
        raise AttemptFailed(f"not connected within {self._attempt_timeout_s:g} s", effect_unknown=False)

    async def _guarded(
        self, scope: anyio.CancelScope, errors: list[ClientError], work: Callable[..., Awaitable[None]], *values: Any
    ) -> None:
        try:
            await work(*values)
        except ClientError as error:
            errors.append(error)
        scope.cancel()

    async def _write(self, connection: Connection, next_seq: int) -> None:
        while not self._wants_rest:
            waiting = self._waiting.get(next_seq)
            if waiting is not None and not waiting.is_sent:
                waiting.is_sent = True
                await connection.send(next_seq, waiting.batch)
                next_seq += 1
            elif self._waiting and not any(waiting.is_sent for waiting in self._waiting.values()):
                raise _OutOfTurn(f"batch {min(self._waiting)} cannot follow batch {next_seq - 1}", effect_unknown=False)
            else:
                await self._changed.wait()

    async def _read(self, connection: Connection) -> None:
        while True:
            receipt = await connection.receive()
            self._guard.health.succeeded()
            self.has_worked = True
            for seq in [seq for seq, waiting in self._waiting.items() if seq <= receipt.seq and waiting.is_sent]:
                waiting = self._waiting.pop(seq)
                waiting.receipt = receipt
                waiting.done.set()
            self._changed.ring()

    def _fail(self, error: ClientError) -> None:
        """Everything that is not acknowledged has to be sent again, or is refused."""
        out_of_turn = isinstance(error, _OutOfTurn)
        if isinstance(error, AttemptFailed):
            if self._waiting and not out_of_turn:
                self._guard.failed()
        elif not self._waiting:
            self._told(error)
        if out_of_turn:
            return  # nothing of it was sent: the next connection begins with it
        for waiting in self._waiting.values():
            waiting.error = error
            waiting.done.set()
        self._waiting.clear()
        self._changed.ring()
