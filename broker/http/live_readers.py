"""How many readers wait right now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from broker.errors import Overloaded


class LiveReaders:
    """By mode; bounded together."""

    def __init__(self, readers_max: int) -> None:
        self._readers_max = readers_max
        self.counts = {"long-poll": 0, "sse": 0, "ui-stream": 0}

    def require_room(self) -> None:
        """Raise Overloaded when there is room for no other."""
        if sum(self.counts.values()) >= self._readers_max:
            raise Overloaded(f"{self._readers_max} readers are live")

    def come(self, mode: str) -> None:
        """One more, until it leaves."""
        self.counts[mode] += 1

    def leave(self, mode: str) -> None:
        """One less."""
        self.counts[mode] -= 1

    @contextmanager
    def counted(self, mode: str) -> Iterator[None]:
        """One more for as long as this lasts."""
        self.come(mode)
        try:
            yield
        finally:
            self.leave(mode)
