"""What happened in a schedule: what clients sent and were told, and what nodes made of the log and showed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.core.outcome import Outcome
from tests.simulator.dump import Dump

Life = tuple[str, int]
"""A path and an incarnation."""
At = tuple[int, int]
"""A partition, and an index or a position in it."""


@dataclass
class Write:
    """One payload, which a client sent once or several times; `tag` is in its bytes and in no other's."""

    tag: str
    path: str
    group: str = ""  # of one client whose writes come one after the other: their order is the stream's
    producer: tuple[str, int, int] | None = None
    sent: int = 0
    denied: int = 0  # of these, how many were answered with a definite no
    acked: list[tuple[int, int]] = field(default_factory=list)  # (incarnation, position after it), per answer

    @property
    def open(self) -> int:
        """How many of its copies may count."""
        return self.sent - self.denied


@dataclass
class Ending:
    """A delete, a reset or a close that a client asked for."""

    path: str
    closes: bool = False
    done: bool = False
    denied: bool = False


class Applied(NamedTuple):
    """What came of the entry at an index: the same on all nodes."""

    kind: int
    path: str
    proposer: tuple[int, int]
    result: str
    next_position: int | None
    expected_seq: int | None
    life: int


def applied(kind: int, path: str, proposer: tuple[int, int], outcome: Outcome) -> Applied:
    """The part of an outcome that is compared."""
    life = outcome.stream.incarnation if outcome.stream is not None else 0
    return Applied(
        kind, path, proposer, outcome.code or outcome.result, outcome.next_position, outcome.expected_seq, life
    )


class Read(NamedTuple):
    """What a read of a life said: records from `start` on."""

    node: str
    life: Life
    start: int
    records: list[bytes]


class Claim(NamedTuple):
    """A worker was told that a wake is its own."""

    subscription_id: str
    birth: int
    generation: int
    worker: str


class History:
    """Everything that the checks look at. `violated` is told by whoever sees a violation as it happens."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self.violations: list[str] = []
        self.writes: dict[str, Write] = {}
        self.endings: list[Ending] = []
        self.shown: dict[Life, dict[int, bytes]] = {}
        """Records by position, as some node first had them."""
        self.ends: dict[Life, int] = {}
        """Where closed streams end, as some reader was first told."""
        self.forks: list[tuple[Life, Life, int]] = []
        """Child, source, and the position where they part."""
        self.mortal: set[str] = set()
        """Paths where some life may have had a deadline."""
        self.crashes: list[tuple[str, At, Dump]] = []
        """What a store held when its node was gone: (node, index, dump)."""
        self.outcomes: dict[At, Applied] = {}
        """By index, as some node first had them."""
        self.chains: dict[At, bytes] = {}
        """By position in the log, as some node first had them."""
        self.claims: list[Claim] = []
        self.reads: list[Read] = []
        self.tails: dict[tuple[str, Life], list[bytes]] = {}
        """What readers that follow a life have seen, from its start."""
        self.has_lost = False
        """Whether a log has lost records. Then nodes may differ, for what they have may be of different pasts: whatever
        comes after the first is kept apart, for `check` to find the past that it is of."""
        self.shown_otherwise: list[tuple[str, Life, int, bytes]] = []
        self.ended_otherwise: list[tuple[str, Life, int]] = []
        self.outcomes_otherwise: list[tuple[str, At, Applied]] = []
        self.chains_otherwise: list[tuple[str, At, bytes]] = []
        self.unread: list[tuple[Write, int, int]] = []
        """What was acknowledged, (write, incarnation, position after it), and then could not be read."""

    def violated(self, invariant: str, detail: str) -> None:
        """Something that must not be. Only the first few are kept: one bug breaks much."""
        if len(self.violations) < 50:
            self.violations.append(f"{invariant}: {detail}")
            self._say("violated", invariant, detail)

    def read_end(self, node: str, life: Life, position: int) -> None:
        """A reader was told that a closed stream ends there. Checks KI9."""
        if self.ends.setdefault(life, position) == position:
            return
        if self.has_lost:
            self.ended_otherwise.append((node, life, position))
        else:
            self.violated("KI9", f"{node} ends {life} at {position}, another at {self.ends[life]}")

    def show(self, node: str, life: Life, start: int, records: list[bytes]) -> None:
        """A node has made these records visible. Checks KI5 and KI10."""
        shown = self.shown.setdefault(life, {})
        for position, record in enumerate(records, start):
            if shown.setdefault(position, record) == record:
                continue
            if self.has_lost:
                self.shown_otherwise.append((node, life, position, record))
            else:
                self.violated("KI5", f"{node} has {record!r} at {position} of {life}, another has {shown[position]!r}")

    def apply(self, node: str, index: At, told: Applied) -> None:
        """A node has applied an entry. Checks KI12."""
        first = self.outcomes.setdefault(index, told)
        if first != told and self.has_lost:
            self.outcomes_otherwise.append((node, index, told))
        elif first != told:
            self.violated("KI12", f"{node} made {told} of entry {index}, another {first}")

    def link(self, node: str, position: At, chain: bytes) -> None:
        """A node stands at a position of the log. Checks KI12 (and KI15, for nodes that began with a snapshot)."""
        first = self.chains.setdefault(position, chain)
        if first != chain and self.has_lost:
            self.chains_otherwise.append((node, position, chain))
        elif first != chain:
            self.violated("KI12", f"{node} has another chain before position {position}")

    def miss(self, write: Write, incarnation: int, next_position: int) -> None:
        """What was acknowledged could not be read. Checks KI7."""
        if self.has_lost:
            self.unread.append((write, incarnation, next_position))
        else:
            self.violated("KI7", f"{write.tag} was acknowledged at {next_position} and then could not be read")

    def told_of_loss(self, node: str, reason: str) -> None:
        """A node has found that its store is not what the log makes."""
        self._say("begins anew", node, reason)
