"""Which answers are being written, and which of them have gone quiet. Pure: the time is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from consumer.wire import ENDED, RecordType

__all__ = ["Silence"]


@dataclass(slots=True)
class _Running:
    """One answer whose end was not told yet."""

    heard_s: float
    """When something of it came last."""
    has_begun: bool = False
    """Whether any chunk of it came."""
    is_quiet: bool = False


class Silence:
    """The running answers of a session. One is quiet from `quiet_s` after its last record until its next one."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._running: dict[str, _Running] = {}  # by message id

    def __contains__(self, message_id: str) -> bool:
        """Whether it is running and quiet."""
        running = self._running.get(message_id)
        return running is not None and running.is_quiet

    @property
    def status(self) -> str:
        """Of all together: `streaming`, `pending` (no chunk yet), `stalled` (all are quiet), or `idle`."""
        heard = [running for running in self._running.values() if not running.is_quiet]
        if any(running.has_begun for running in heard):
            return "streaming"
        if heard:
            return "pending"
        return "stalled" if self._running else "idle"

    def hear(self, message_id: str, record: Any, now_s: float) -> None:
        """This record came, and changed this message."""
        match record:
            case {"type": RecordType.CHUNK}:
                self._running.setdefault(message_id, _Running(now_s)).has_begun = True
            case {"type": RecordType.GENERATION, "value": {"status": status}} if status not in ENDED:
                self._running[message_id] = _Running(now_s)
            case _:
                self._running.pop(message_id, None)
                return
        running = self._running[message_id]
        running.heard_s, running.is_quiet = now_s, False

    def listen(self, now_s: float) -> None:
        """Count from now: before, nobody listened."""
        for running in self._running.values():
            running.heard_s, running.is_quiet = now_s, False

    def next_s(self) -> float:
        """When the next one will have been quiet for too long; infinity if none can be."""
        heard = [running.heard_s for running in self._running.values() if not running.is_quiet]
        return min(heard, default=math.inf) + self._quiet_s

    def fall(self, now_s: float) -> list[str]:
        """The messages that are quiet from now on, and were not before."""
        fallen = [
            message_id
            for message_id, running in self._running.items()
            if not running.is_quiet and running.heard_s + self._quiet_s <= now_s
        ]
        for message_id in fallen:
            self._running[message_id].is_quiet = True
        return fallen
