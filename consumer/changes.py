"""What happens to a view while nobody looks: gathered until its follower asks, so that a slow one costs no queue."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from consumer.batch import Batch

__all__ = ["Change", "Changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a session since the last one. It may be nothing, when only the end was reached or closed."""

    messages: list[dict[str, Any]]
    """The items that changed, as they are now, in the order of the session."""
    offset: str
    up_to_date: bool
    closed: bool
    removed: list[str] = field(default_factory=list)
    """The ids of messages that are there no more: optimistic ones that were rolled back."""


class Changes:
    """What one follower has not been told yet, and whether more will come."""

    def __init__(self) -> None:
        self.up_to_date = False
        self.closed = False
        self.failure: Exception | None = None
        """What the following ended with, if not in order."""
        self.has_ended = False
        """Nothing more is gathered from the log."""
        self._changed: set[str] = set()  # ids of messages
        self._reached = False  # how the log stands was not told yet
        self._bell = anyio.Event()
        self._scope = anyio.CancelScope()
        self._stopped = anyio.Event()

    @property
    def are_there(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._changed) or self._reached

    def note(self, message_id: str) -> None:
        """Something about this message changed."""
        self._changed.add(message_id)
        self._bell.set()

    def reach(self, batch: Batch) -> None:
        """The view has taken this batch of the log."""
        self.up_to_date, self.closed = batch.up_to_date, batch.closed
        self._reached = True
        self._bell.set()

    def take(self) -> set[str]:
        """The ids of the messages that changed; from now on they have been told."""
        changed, self._changed = self._changed, set()
        self._reached = False
        return changed

    async def wait(self) -> None:
        """Return when there is something to tell, or nothing more will come."""
        if not self.are_there and not self.has_ended:
            self._bell = anyio.Event()
            await self._bell.wait()

    @contextmanager
    def gathering(self) -> Generator[None, None, None]:
        """The task that follows the log: what it raises is kept for the follower."""
        try:
            with self._scope:
                yield
        except Exception as error:  # noqa: BLE001  raised again where somebody waits for it
            self.failure = error
        finally:
            self.has_ended = True
            self._bell.set()
            self._stopped.set()

    async def stop(self) -> None:
        """End the task that follows the log, and return when it has let its connection go."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._stopped.wait()
