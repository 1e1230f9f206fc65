"""What `benchmarks.kafka` found, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import matplotlib as mpl
import msgspec

from benchmarks import results
from benchmarks.scenario import Measured

FLOOR: Final = 2.0
"""What an acknowledgement may take, as a multiple of the bare round trip."""
TARGET: Final = 1.5
CONNECTIONS: Final = 32
FAILOVER_STREAMS: Final = 8
BEFORE_KILL_S: Final = 2.0
AFTER_KILL_S: Final = 8.0
BIN_S: Final = 0.1
"""Of the plot."""
POINTS: Final = 200
"""Of each of its curves."""


class Turns(msgspec.Struct, frozen=True):
    """Milliseconds of all acknowledgements and of all bare round trips, a list for each turn."""

    ack_ms: list[list[float]]
    read_ms: list[list[float]]
    """Acknowledgements too, while another node, if there is one, has a live reader of that stream."""
    bare_ms: list[list[float]]
    others_busy: float = 0.0

    @property
    def ratios(self) -> list[float]:
        """Of the medians of acknowledgements and bare round trips, turn by turn."""
        return self.times_bare(self.ack_ms)

    def times_bare(self, by_turn: list[list[float]]) -> list[float]:
        """What a turn's median is of the bare one's."""
        return [median(one) / median(bare) for one, bare in zip(by_turn, self.bare_ms, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of these."""
        return median(self.ratios)

    @property
    def passed(self) -> bool:
        """Whether the floor was reached."""
        return self.ratio <= FLOOR


class Carried(msgspec.Struct, frozen=True):
    """One workload, round by round."""

    chunks: int
    rounds: list[Measured]
    follower_us: list[float]  # of processor time for one request in each node that only applies it, if there are any

    @property
    def server_us(self) -> float:
        """Of processor time for one request in the node that takes it."""
        return median(one.server_us for one in self.rounds)


class Start(msgspec.Struct, frozen=True):
    """From starting a node with an empty folder until it was ready."""

    seconds: float
    cpu_s: float


class CatchUp(msgspec.Struct, frozen=True):
    """New nodes on a topic with so many entries, and others on one with none, by turns."""

    entries: int
    megabytes: float  # of the bodies that were sent
    with_all: list[Start]
    with_nothing: list[Start]

    @property
    def reading_s(self) -> float:
        """What reading and applying all of it takes."""
        return median(one.seconds for one in self.with_all) - median(one.seconds for one in self.with_nothing)

    @property
    def cpu_s(self) -> float:
        """Of processor time for that."""
        return median(one.cpu_s for one in self.with_all) - median(one.cpu_s for one in self.with_nothing)


class Failover(msgspec.Struct, frozen=True):
    """A partition's leader was killed. Beside the node, bare round trips went on, one at a time."""

    acks_s: list[float]  # seconds from the kill
    bare_acks_s: list[float]
    gap_s: float  # the longest that one append waited
    bare_gap_s: float


class Result(msgspec.Struct, frozen=True):
    """All of it. Every batch acknowledged was found once, else there is no result."""

    nodes: int
    turns: Turns
    carried: list[Carried]
    catch_up: CatchUp
    failovers: list[Failover]
    audited_batches: int


def told(result: Result) -> str:
    """Tables in Markdown, and what to think of them."""
    parts = [_of_turns(result.turns), _of_carried(result.carried), _of_catch_up(result.catch_up)]
    if result.failovers:
        parts.append(_of_failovers(result.failovers))
    others_busy = [result.turns.others_busy, *(one.others_busy for each in result.carried for one in each.rounds)]
    if max(others_busy) >= results.DISTURBED:
        parts.append(
            f"Disturbed: others used {median(others_busy):.0%} of a core, up to {max(others_busy):.0%}: only a hint."
        )
    parts.append(f"Valid: {result.audited_batches:,} batches were acknowledged, and the log has each of them once.")
    return "\n\n".join(parts)


def _of_turns(turns: Turns) -> str:
    read = turns.times_bare(turns.read_ms)
    lines = _table(
        f"one at a time, {len(turns.ratios)} turns",
        ["p50 / p99 ms", "x bare (lowest to highest turn)"],
        ["bare produce and consume", _p50_p99(turns.bare_ms), ""],
        [
            "durable append of 10 chunks over HTTP",
            _p50_p99(turns.ack_ms),
            f"**{turns.ratio:.2f}** {_range(turns.ratios)}",
        ],
        ["… while a node has a live reader", _p50_p99(turns.read_ms), f"{median(read):.2f} {_range(read)}"],
    )
    floor = "reached" if turns.passed else "**not reached**"
    target = "reached" if turns.ratio <= TARGET else "not reached"
    return f"{lines}\n\nFloor of {FLOOR:g} x bare: {floor}. Target of {TARGET:g}: {target}."


def _of_carried(carried: Sequence[Carried]) -> str:
    return _table(
        f"{CONNECTIONS} connections",
        ["appends/s", "p50 / p99 ms", "server us", "us in a follower", "appends/s per core", "chunks/s per core"],
        *map(_line, carried),
    )


def _line(one: Carried) -> list[str]:
    rates = [measured.requests_per_s for measured in one.rounds]
    p50, p99 = median(measured.p50_ms for measured in one.rounds), median(measured.p99_ms for measured in one.rounds)
    return [
        f"{one.chunks:,} chunks a POST" if one.chunks > 1 else "1 chunk a POST",
        f"{median(rates):,.0f} {_range(rates, ',.0f')}",
        f"{p50:.1f} / {p99:.1f}",
        f"{one.server_us:,.0f}",
        f"{median(one.follower_us):,.0f}" if one.follower_us else "",
        f"{1e6 / one.server_us:,.0f}",
        f"{one.chunks * 1e6 / one.server_us:,.0f}",
    ]


def _of_catch_up(found: CatchUp) -> str:
    all_of_it = f"{found.entries:,} entries, {found.megabytes:,.0f} MB"
    by_clock = f"{found.entries / found.reading_s:,.0f} entries/s, {found.megabytes / found.reading_s:,.0f} MB/s"
    by_core = f"{found.entries / found.cpu_s:,.0f} entries/s, {found.megabytes / found.cpu_s:,.0f} MB/s"
    return f"A new node reads {all_of_it} in {found.reading_s:.2f} s: {by_clock}; per core {by_core}."


def _of_failovers(found: Sequence[Failover]) -> str:
    gaps, bare_gaps = [one.gap_s for one in found], [one.bare_gap_s for one in found]
    waited = f"{median(gaps):.2f} s {_range(gaps)}, bare {median(bare_gaps):.2f} s {_range(bare_gaps)}"
    return f"A partition's leader killed, {len(gaps)} times: the longest wait for an acknowledgement is {waited}."


def _table(title: str, columns: list[str], *lines: list[str]) -> str:
    cells = [[title, *columns], ["---"] * (len(columns) + 1), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _p50_p99(by_turn: Sequence[Sequence[float]]) -> str:
    took = _all(by_turn)
    return f"{took[len(took) // 2]:.2f} / {took[len(took) * 99 // 100]:.2f}"


def _range(values: Sequence[float], form: str = ".2f") -> str:
    return f"({min(values):{form}} to {max(values):{form}})"


def _all(by_turn: Sequence[Sequence[float]]) -> list[float]:
    return sorted(took for turn in by_turn for took in turn)


def draw(result: Result, path: Path) -> None:
    """How acknowledgement and bare round trip are distributed; what was acknowledged around a kill."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  after the backend was chosen

    mpl.rcParams["svg.fonttype"] = "none"  # names of fonts instead of their curves
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    shares = [number / POINTS for number in range(POINTS)]
    for name, by_turn in (
        ("bare produce and consume", result.turns.bare_ms),
        ("append over HTTP", result.turns.ack_ms),
    ):
        took = _all(by_turn)
        left.plot([took[int(share * len(took))] for share in shares], shares, label=name)
    left.set(title="one at a time", xlabel="ms", ylabel="share of all", xscale="log")
    left.legend(loc="lower right")
    for last in result.failovers[-1:]:
        for name, acks_s in (("bare", last.bare_acks_s), (f"{FAILOVER_STREAMS} streams", last.acks_s)):
            counts = Counter(math.floor(ack_s / BIN_S) for ack_s in acks_s)
            bins = range(round(-BEFORE_KILL_S / BIN_S), round(AFTER_KILL_S / BIN_S))
            right.step([number * BIN_S for number in bins], [counts[number] / BIN_S for number in bins], label=name)
    right.set(title="a partition's leader is killed at 0", xlabel="s", ylabel="acknowledged/s")
    right.legend(loc="upper right")
    figure.savefig(path)
