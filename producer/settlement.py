"""What has to be done when an answer is over, releasing a quota say: retried, counted, and told if it fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
import msgspec

from consumer.errors import AttemptFailed, ClientError, SpoolError, Unavailable
from consumer.retry import persist
from consumer.wire import RecordType
from producer.control import Control
from producer.ending import Ended, described
from producer.limits import Limits
from producer.metrics import Metrics
from producer.signal import Signal
from producer.spool import Change, Unsettled

__all__ = ["KeptSettlements", "Settle", "Settlements"]

Settle: TypeAlias = Callable[[Ended], Awaitable[None]]
"""Settles a generation that is over; it is called again until it returns, so it must do no harm twice."""

_log: Final = logging.getLogger("streamfold.producer")


class _Failure(msgspec.Struct):
    """How settling one generation goes wrong."""

    attempts: int = 0
    error: dict[str, str] = msgspec.field(default_factory=lambda: described(TimeoutError("it took too long")))


class Settlements:
    """Calls the application for each generation that is over, until that works or is given up."""

    def __init__(self, settle: Settle, control: Control, limits: Limits, metrics: Metrics) -> None:
        self._settle = settle
        self._control = control
        self._limits = limits
        self._metrics = metrics
        self._within_s = math.inf
        """From the end of a generation to giving up, whatever else allows more."""
        self._scopes: set[anyio.CancelScope] = set()

    def hurry(self) -> None:
        """The producer is closed: what is not settled within `finish_timeout_s` has failed."""
        self._within_s = self._limits.finish_timeout_s
        for scope in self._scopes:
            scope.deadline = anyio.current_time() + self._within_s

    async def settle(self, ended: Ended) -> None:
        """Return when it is settled, or given up and told to readers, if they can be. Raises nothing."""
        failure = _Failure()
        is_settled = False
        with anyio.move_on_after(self._within_s, shield=True) as scope:
            self._scopes.add(scope)
            is_settled = await self.tried(ended, failure)
        self._scopes.discard(scope)
        if is_settled:
            return
        self.count_failed()
        with anyio.move_on_after(self._limits.finish_timeout_s, shield=True):
            try:
                await self.tell(ended, msgspec.to_builtins(failure))
            except ClientError as error:
                self.leave_untold(ended, error)

    async def tried(self, ended: Ended, failure: _Failure) -> bool:
        """Whether it is settled now. Tries until `settle_deadline_s` has passed, or it is refused for good."""
        began_s = anyio.current_time()
        self._metrics.unsettled += 1
        try:
            with anyio.move_on_after(self._limits.settle_deadline_s):
                await persist(partial(self._attempt, ended, failure), self._limits, deadline_s=None)
                self._metrics.settlement.add(anyio.current_time() - began_s)
                return True
        except ClientError:
            pass  # refused, and `failure` has it
        finally:
            self._metrics.unsettled -= 1
        return False

    async def _attempt(self, ended: Ended, failure: _Failure) -> None:
        failure.attempts += 1
        try:
            with anyio.fail_after(self._limits.attempt_timeout_s):
                await self._settle(ended)
        except Exception as error:  # whatever the caller's hook raises
            failure.error = described(error)
            self._metrics.failed_settlement_attempts += 1
            if isinstance(error, ClientError) and not error.retryable:
                raise
            retry_after_s = error.retry_after_s if isinstance(error, AttemptFailed | Unavailable) else None
            raise AttemptFailed(str(error), retry_after_s=retry_after_s) from error

    def count_failed(self) -> None:
        """One was given up."""
        self._metrics.failed_settlements += 1

    async def tell(self, ended: Ended, failure: dict[str, Any]) -> None:
        """Put the failure into the log of the session, for its readers. Raises what the broker refused it with."""
        value = {"messageId": ended.message_id, "generationStatus": ended.status, "status": "failed", **failure}
        await self._control.upsert(ended.session_id, RecordType.SETTLEMENT, ended.generation_id, value)

    def leave_untold(self, ended: Ended, error: ClientError) -> None:
        """Nobody will read of it in the session: it is counted, and the operator finds it in the log."""
        self._metrics.untold_settlements += 1
        _log.warning("generation %s is not settled, and its readers were not told: %s", ended.generation_id, error)


class KeptSettlements:
    """Settles what the spool has as unsettled, from a task of the outbox: what earlier processes left as well.

    A process that dies while it settles is followed by one that settles again: at least once, never less.
    """

    def __init__(self, change: Change, settlements: Settlements, limits: Limits, moved: Signal) -> None:
        self.is_idle = False
        """Nothing is left to settle, as far as this process can."""
        self._change = change
        self._settlements = settlements
        self._at_once_max = limits.catch_up_generations_max
        self._wait_s = limits.probe_s
        self._moved = moved
        self._active: set[int] = set()
        self._stuck: set[int] = set()
        """Settled, and the spool could not be told: the next process settles them again."""
        self._has_news = False
        self._news = Signal()

    def look(self) -> None:
        """There may be something to settle."""
        self._has_news = True
        self.is_idle = False
        self._news.ring()

    async def run(self) -> None:
        """Settle, until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._has_news = False
                await self._begin(tasks)
                while not self._has_news:
                    await self._news.wait()

    async def _begin(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin with as many as may be under way."""
        known = self._active | self._stuck
        found = await self._change(lambda spool: spool.unsettled(len(known) + self._at_once_max))
        for unsettled in [one for one in found if one.id not in known][: self._at_once_max - len(self._active)]:
            self._active.add(unsettled.id)
            tasks.start_soon(self._settle, unsettled)
        self.is_idle = not self._active and not self._has_news
        self._moved.ring()

    async def _settle(self, unsettled: Unsettled) -> None:
        try:
            await self._settle_or_tell(unsettled)
        except SpoolError:
            self._stuck.add(unsettled.id)
        self._active.discard(unsettled.id)
        self.look()

    async def _settle_or_tell(self, unsettled: Unsettled) -> None:
        """Raises SpoolError."""
        told = unsettled.failure
        if told is None:
            failure = _Failure()
            if not await self._settlements.tried(unsettled.ended, failure):
                self._settlements.count_failed()
                told = msgspec.to_builtins(failure)
                await self._change(lambda spool: spool.give_up_settling(unsettled.id, told))
        if told is not None:
            await self._tell(unsettled.ended, told)
        await self._change(lambda spool: spool.settled(unsettled.id))

    async def _tell(self, ended: Ended, failure: dict[str, Any]) -> None:
        """Return when readers are told, however long the broker is away, or when it will not have it."""
        while True:
            try:
                return await self._settlements.tell(ended, failure)
            except ClientError as error:
                if not error.retryable:
                    return self._settlements.leave_untold(ended, error)
            await anyio.sleep(self._wait_s)
