"""What was measured, for people and for programs."""

from __future__ import annotations

from statistics import median
from typing import Final, NamedTuple

import msgspec

from benchmarks.facts import Facts
from benchmarks.scenario import BARE, Measured, Scenario

DISTURBED: Final = 0.1
"""Share of a core in the hands of others from which a run counts as disturbed."""


class Row(NamedTuple):
    """A scenario with what it came to in each round."""

    scenario: Scenario
    rounds: list[Measured]
    ratios: list[float]  # to the bare application in the same round
    disturbed: bool  # others were at work in half of its rounds, or of the bare application's

    @property
    def requests_per_s(self) -> list[float]:
        """Round by round."""
        return [measured.requests_per_s for measured in self.rounds]

    @property
    def chunks_per_s(self) -> float:
        """The median."""
        return median(measured.chunks_per_s for measured in self.rounds)

    @property
    def floor(self) -> str:
        """What it must reach, in words; empty where nothing is asked."""
        scenario = self.scenario
        if scenario.ratio_min is not None:
            return f">= {scenario.ratio_min:.2f} x bare"
        if scenario.chunks_per_s_min is not None:
            return f">= {scenario.chunks_per_s_min:,.0f} chunks/s"
        return ""

    @property
    def passed(self) -> bool:
        """Whether it reached its floors, shown on a quiet machine where it has any."""
        if self.floor and self.disturbed:
            return False
        ratio_min, chunks_per_s_min = self.scenario.ratio_min, self.scenario.chunks_per_s_min
        if ratio_min is not None and median(self.ratios) < ratio_min:
            return False
        return chunks_per_s_min is None or self.chunks_per_s >= chunks_per_s_min


def rows(scenarios: list[Scenario], rounds: list[list[Measured]]) -> list[Row]:
    """`rounds[r][s]` is scenario `s` in round `r`."""
    bare = next(index for index, scenario in enumerate(scenarios) if scenario.engine == BARE)
    return [
        Row(
            scenario,
            [measured[index] for measured in rounds],
            [measured[index].requests_per_s / measured[bare].requests_per_s for measured in rounds],
            median(max(measured[index].others_busy, measured[bare].others_busy) for measured in rounds) >= DISTURBED,
        )
        for index, scenario in enumerate(scenarios)
    ]


_HEADER = (
    "| | requests/s (lowest to highest) | chunks/s | x bare | p50 / p99 ms | server us | server / load busy | floor | |"
)


def table(found: list[Row]) -> str:
    """Medians over the rounds, as Markdown."""
    return "\n".join([_HEADER, "|---" * 9 + "|", *map(_line, found)])


def _line(row: Row) -> str:
    rates = row.requests_per_s
    cells = [
        row.scenario.name,
        f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
        f"{row.chunks_per_s:,.0f}",
        f"{median(row.ratios):.2f}",
        f"{median(m.p50_ms for m in row.rounds):.2f} / {median(m.p99_ms for m in row.rounds):.2f}",
        f"{median(m.server_us for m in row.rounds):.1f}",
        f"{median(m.server_busy for m in row.rounds):.0%} / {median(m.load_busy for m in row.rounds):.0%}",
        row.floor,
        _verdict(row),
    ]
    return f"| {' | '.join(cells)} |"


def _verdict(row: Row) -> str:
    if not row.floor:
        return ""
    if row.disturbed:
        return "disturbed"
    return "PASS" if row.passed else "below"


def disturbance(found: list[Row]) -> str:
    """What to think of the numbers when somebody else was at work; empty when nobody was."""
    others = [measured.others_busy for row in found for measured in row.rounds]
    if max(others) < DISTURBED:
        return ""
    disturbed = sum(share >= DISTURBED for share in others)
    return (
        f"Others used up to {max(others):.0%} of a core in {disturbed} of {len(others)} runs: "
        "these numbers are no more than a hint. Measure again on a quiet machine."
    )


def raw(facts: Facts, found: list[Row], wrk_ratio: float | None) -> bytes:
    """Everything, as JSON."""
    told = {
        "facts": facts,
        "wrk_ratio": wrk_ratio,
        "scenarios": [
            {
                "name": row.scenario.name,
                "chunks": row.scenario.workload.chunks,
                "connections": row.scenario.workload.connections,
                "floor": row.floor,
                "passed": row.passed,
                "rounds": row.rounds,
                "ratios": row.ratios,
            }
            for row in found
        ],
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"
