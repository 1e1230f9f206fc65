"""The rule that makes an answer final where several processes write to one log.

A client of a log that did not hear what became of a record may write it twice, or late: the copy of a paused server, of
a connection that was slow to break. A record therefore says who wrote it (a boot) and its number in that life, and one
whose number is not above all before it is void, for everybody. So a process that sees a later record of its own knows
of every earlier one that is not there by now: it never will be.
"""

from __future__ import annotations

from typing import Final

import msgspec

from broker.limits import PROPOSER_IDLE_MS

_NEVER_AGAIN: Final = (1 << 63) - 1
"""Above every number: of a boot that is over."""


class Proposers:
    """Per boot the highest number seen.

    One silent for PROPOSER_IDLE_MS of the log's time is forgotten when another comes: no client holds a copy back for
    so long.
    """

    def __init__(self, stored: bytes = b"") -> None:
        self._seen: dict[int, tuple[int, int]] = (  # number, time of the newest record
            msgspec.msgpack.decode(stored, type=dict[int, tuple[int, int]]) if stored else {}
        )

    def is_late(self, boot: int, number: int) -> bool:
        """Whether a record is void: one with this number, or a higher one, has been before it."""
        seen = self._seen.get(boot)
        return seen is not None and number <= seen[0]

    def note(self, boot: int, number: int, now_ms: int) -> None:
        """A record that is not late has been applied."""
        if boot not in self._seen:
            self._forget_idle(now_ms)
        self._seen[boot] = number, now_ms

    def retire(self, boot: int, now_ms: int) -> None:
        """That boot is over: whatever of it still comes is void."""
        self._seen[boot] = _NEVER_AGAIN, now_ms

    def stored(self) -> bytes:
        """The table as it is kept."""
        return msgspec.msgpack.encode(self._seen)

    def _forget_idle(self, now_ms: int) -> None:
        self._seen = {boot: seen for boot, seen in self._seen.items() if seen[1] >= now_ms - PROPOSER_IDLE_MS}
