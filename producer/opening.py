"""What a generation is opened with: who it is, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from consumer.address import checked_id, generation_target
from producer.uploads import Place

__all__ = ["Opened", "Opening"]

LEASE_MS_MIN, LEASE_MS_MAX = 1_000, 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a generation is opened with. A retry, and a resumed process, must say the same.

    Raises ValueError if an id is none, or the lease is outside 1 s to 600 s.
    """

    session_id: str
    generation_id: str
    message_id: str
    lane: str
    format: str
    role: str
    actor_id: str | None
    lease_ms: int
    on_conflict: str | None = None
    """`reject`: not at all while another runs in the lane; the default interrupts that one."""
    continues: str | None = None
    """The generation of this message that it goes on from; that one has ended."""
    txid: str | None = None
    """What its opening is called: the generation's record carries it, and the chunks of the first batch."""

    def __post_init__(self) -> None:
        generation_target(self.session_id, self.generation_id)
        checked_id("message_id", self.message_id)
        checked_id("lane", self.lane)
        if self.txid is not None:
            checked_id("txid", self.txid)
        if not LEASE_MS_MIN <= self.lease_ms <= LEASE_MS_MAX:
            raise ValueError(f"lease_ms must be {LEASE_MS_MIN} to {LEASE_MS_MAX}")

    def place(self, *, next_seq: int, chunks: int) -> Place:
        query = {"messageId": self.message_id, "lane": self.lane, "format": self.format, "role": self.role}
        if self.actor_id is not None:
            query["actorId"] = self.actor_id
        query["leaseMs"] = str(self.lease_ms)
        if self.on_conflict is not None:
            query["onConflict"] = self.on_conflict
        if self.continues is not None:
            query["continues"] = self.continues
        target = generation_target(self.session_id, self.generation_id)
        return Place(target, urlencode(query), self.lease_ms, next_seq, chunks, self.txid)


class Opened:
    """Whatever writes a generation knows who that is."""

    _opening: Opening

    @property
    def session_id(self) -> str:
        return self._opening.session_id

    @property
    def generation_id(self) -> str:
        return self._opening.generation_id

    @property
    def message_id(self) -> str:
        return self._opening.message_id
