"""What a change did: two runs of the kit, measure by measure.

A number differs when the median of either run lies outside of all rounds of the other; anything less may be chance.
Where a scenario measures the bare ASGI floor as well, its numbers are taken as multiples of the floor's in the same
round, so that a machine that was slower that day does not pass for a slower broker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from benchmarks.contenders import BARE
from benchmarks.numerals import numeral, spread_text
from benchmarks.results import Report, Scenario, Spread, spread

NO_DIFFERENCE: Final = "no difference"


class Effect(NamedTuple):
    """One measure of one subject in both runs."""

    scenario: str
    subject: str
    measure: str
    before: Spread
    after: Spread
    per_floor: bool
    """Whether both are multiples of the floor."""
    more_is_better: bool | None

    @property
    def ratio(self) -> Spread:
        """Of the medians; and of the later run's lowest and highest round to the earlier run's median."""
        return Spread(*(value / self.before.middle for value in self.after))

    @property
    def verdict(self) -> str:
        """What it means for who uses it."""
        before, after = self.before, self.after
        if before.least <= after.middle <= before.most or after.least <= before.middle <= after.most:
            return NO_DIFFERENCE
        if self.more_is_better is None:
            return "differs"
        return "better" if (after.middle > before.middle) == self.more_is_better else "worse"


def effects(before: Report, after: Report) -> list[Effect]:
    """Of everything that both runs measured, in the later run's order."""
    earlier = {scenario.name: scenario for scenario in before.scenarios}
    return [
        effect
        for scenario in after.scenarios
        if scenario.name in earlier
        for effect in _of_scenario(earlier[scenario.name], scenario)
    ]


def _of_scenario(before: Scenario, after: Scenario) -> Iterator[Effect]:
    for subject in after.subjects:
        if subject not in before.subjects:
            continue
        for name, measure in after.measures.items():
            floors = [_per_floor(one, subject, name) for one in (before, after)]
            raw = [one.subjects[subject].values(name) for one in (before, after)]
            first, second = floors if all(floors) else raw
            if first and second and spread(first).middle:
                yield Effect(
                    after.name, subject, name, spread(first), spread(second), all(floors), measure.more_is_better
                )


def _per_floor(scenario: Scenario, subject: str, measure: str) -> list[float]:
    if subject == BARE or BARE not in scenario.subjects:
        return []
    return scenario.ratios(measure, subject, BARE)


def table(found: list[Effect]) -> str:
    """As Markdown: what changed first."""
    lines = ["| | before | after | after / before | |", "|---|---|---|---|---|"]
    for effect in sorted(found, key=lambda one: one.verdict == NO_DIFFERENCE):
        times = " x bare" if effect.per_floor else ""
        cells = [
            f"{effect.scenario}, {effect.subject}, {effect.measure}",
            f"{numeral(effect.before.middle)}{times}",
            f"{numeral(effect.after.middle)}{times}",
            spread_text(effect.ratio),
            effect.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
