"""What was measured, in one form for every scenario, and what follows from it: medians, spreads, ratios, verdicts."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import msgspec

from benchmarks.facts import Facts

FORMAT: Final = 1
"""Of the JSON; another number is refused."""
INVALID: Final = "invalid"
"""How the reason begins why a subject has no numbers, if it is one to look into."""
DISTURBED: Final = 0.1
"""Share of a core in the hands of others from which a run counts as disturbed."""

Point = tuple[float, float]


class Measure(msgspec.Struct, frozen=True):
    """What a number says. `more_is_better` is None for what only explains the others."""

    unit: str
    more_is_better: bool | None = None


class Target(msgspec.Struct, frozen=True):
    """What a subject's number is held to: as it is, or as a multiple of another subject's in the same round."""

    measure: str
    subject: str
    bound: float
    stretch: float | None = None
    against: str | None = None
    against_measure: str | None = None
    """Where it is another than `measure`."""


class Plot(msgspec.Struct, frozen=True):
    """A picture of one series: a line for each subject."""

    series: str
    title: str
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False


class Run(msgspec.Struct, frozen=True):
    """One subject in one round."""

    round: int
    numbers: dict[str, float]
    others_busy: float = 0.0
    """What everybody else used of the two cores, as a share of one."""
    series: dict[str, list[Point]] = {}
    histograms: dict[str, str] = {}
    """HdrHistograms of microseconds, in their own compressed form."""
    notes: list[str] = []
    """What a reader of the numbers should know."""


class Subject(msgspec.Struct):
    """One server, setting or way of doing it."""

    runs: list[Run] = []
    absent: str = ""
    """Why it was not measured; empty if it was."""

    def values(self, measure: str) -> list[float]:
        """Round by round."""
        return [run.numbers[measure] for run in self.runs if measure in run.numbers]


class Spread(NamedTuple):
    """Of some rounds."""

    middle: float
    least: float
    most: float


def spread(values: list[float]) -> Spread:
    """The median, and how far the rounds lie apart. Raises ValueError without any."""
    return Spread(median(values), min(values), max(values))


class Scenario(msgspec.Struct):
    """What one scenario came to."""

    name: str
    title: str
    about: str
    measures: dict[str, Measure]
    targets: list[Target]
    plots: list[Plot]
    subjects: dict[str, Subject]

    def ratios(self, measure: str, subject: str, against: str, against_measure: str | None = None) -> list[float]:
        """Of two subjects, by rounds that both have: what changed on the machine meanwhile changed for both."""
        there = {run.round: run.numbers for run in self.subjects[against].runs}
        below = against_measure or measure
        return [
            run.numbers[measure] / there[run.round][below]
            for run in self.subjects[subject].runs
            if measure in run.numbers and there.get(run.round, {}).get(below)
        ]

    def judged(self, target: Target) -> Spread | None:
        """What the target asks about; None if it was not measured."""
        if target.subject not in self.subjects or (target.against or target.subject) not in self.subjects:
            return None
        if target.against is None:
            values = self.subjects[target.subject].values(target.measure)
        else:
            values = self.ratios(target.measure, target.subject, target.against, target.against_measure)
        return spread(values) if values else None

    def verdict(self, target: Target) -> str:
        """`stretch`, `reached`, `missed` or `not measured`."""
        found = self.judged(target)
        if found is None:
            return "not measured"
        if target.stretch is not None and self._keeps(target, found.middle, target.stretch):
            return "stretch"
        return "reached" if self._keeps(target, found.middle, target.bound) else "missed"

    def _keeps(self, target: Target, value: float, bound: float) -> bool:
        return value >= bound if self.measures[target.measure].more_is_better else value <= bound

    @property
    def notes(self) -> list[str]:
        """Who was not measured, or not at everything, and why; each once."""
        told = []
        for name, subject in self.subjects.items():
            lines = [subject.absent] if subject.absent else [note for run in subject.runs for note in run.notes]
            told += [f"{name}: {line}" for line in dict.fromkeys(lines)]
        return told

    @property
    def others_busy(self) -> list[float]:
        """Run by run."""
        return [run.others_busy for subject in self.subjects.values() for run in subject.runs]


class Report(msgspec.Struct):
    """All of one run of the kit."""

    command: str
    began_at: str
    took_s: float
    facts: Facts
    versions: dict[str, str]
    """Of the programs that were measured, or that measured."""
    scenarios: list[Scenario]
    format: int = FORMAT

    @property
    def disturbed_runs(self) -> tuple[int, int]:
        """How many runs others disturbed, and how many there were."""
        shares = [share for scenario in self.scenarios for share in scenario.others_busy]
        return sum(share >= DISTURBED for share in shares), len(shares)

    @property
    def disturbed(self) -> bool:
        """Whether so many were that the numbers are no more than a hint."""
        disturbed, runs = self.disturbed_runs
        return disturbed * 4 >= runs > 0

    @property
    def invalid(self) -> list[str]:
        """What was measured and turned out not to be what it says; each with its reason."""
        return [
            f"{scenario.name}, {name}: {subject.absent}"
            for scenario in self.scenarios
            for name, subject in scenario.subjects.items()
            if subject.absent.startswith(INVALID)
        ]

    @property
    def passed(self) -> bool:
        """Whether nothing that was measured missed its target."""
        return not self.invalid and not any(
            scenario.verdict(target) == "missed" for scenario in self.scenarios for target in scenario.targets
        )


class _Format(msgspec.Struct):
    format: int = 0


def save(report: Report, path: Path) -> None:
    """Write it as JSON."""
    path.write_bytes(msgspec.json.encode(report) + b"\n")


def load(path: Path) -> Report:
    """Read it back. Raises ValueError for what is none."""
    text = path.read_bytes()
    found = msgspec.json.decode(text, type=_Format).format
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this kit reads {FORMAT}")
    return msgspec.json.decode(text, type=Report)
