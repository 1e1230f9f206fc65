"""Runs scenarios: their subjects in turn, round by round, with an eye on who else is at work on the machine."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from benchmarks import results, server
from benchmarks.results import Measure, Plot, Point, Run, Subject, Target

QUICK_ROUNDS_MAX: Final = 3


class Absent(Exception):
    """A subject that this machine does not have; says why, and what would bring it."""


@dataclass(frozen=True)
class Setting:
    """How much is measured. Quick is for a look: less of everything, and no more than three rounds."""

    folder: Path
    """On a real disk, empty, and emptied after each run."""
    quick: bool = False
    rounds: int | None = None
    """How often each subject is measured, if that was asked for."""

    @property
    def seconds(self) -> float:
        """Measured in each run."""
        return 1.0 if self.quick else 2.0

    def rounds_of(self, scenario: Scenario) -> int:
        """How often each of its subjects is measured."""
        if self.rounds is not None:
            return self.rounds
        return min(scenario.rounds, QUICK_ROUNDS_MAX) if self.quick else scenario.rounds

    @property
    def warm_up_s(self) -> float:
        """Before that."""
        return 0.3 if self.quick else 0.5


@dataclass(frozen=True)
class Found:
    """What one run came to."""

    numbers: dict[str, float]
    series: dict[str, list[Point]] = field(default_factory=dict)
    histograms: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Measuring = Callable[[str], Found]
"""Measures a subject once. Raises Absent when it is not there."""


@dataclass(frozen=True)
class Scenario:
    """Something to measure, and whom to measure at it."""

    name: str
    title: str
    about: str
    measures: dict[str, Measure]
    subjects: tuple[str, ...]
    opened: Callable[[Setting], AbstractContextManager[Measuring]]
    """What all rounds have in common is made when it is entered."""
    targets: tuple[Target, ...] = ()
    plots: tuple[Plot, ...] = ()
    rounds: int = 3
    """Unless others are asked for; fewer for what takes long and hardly differs from round to round."""


def run(scenario: Scenario, setting: Setting, only: Sequence[str] = (), told: TextIO = sys.stderr) -> results.Scenario:
    """Every subject in turn, and again: what changes on the machine meanwhile changes for all of them."""
    subjects = {name: Subject() for name in scenario.subjects if not only or any(part in name for part in only)}
    try:
        with scenario.opened(setting) as measuring:
            _rounds(scenario, measuring, subjects, setting.rounds_of(scenario), told)
    except Exception as error:  # noqa: BLE001 -- what breaks one scenario is told, and must not take the others along
        for subject in subjects.values():
            _void(subject, error)
        print(f"{scenario.name}: {subjects}", file=told, flush=True)
    return results.Scenario(
        scenario.name,
        scenario.title,
        scenario.about,
        scenario.measures,
        list(scenario.targets),
        list(scenario.plots),
        subjects,
    )


def _rounds(scenario: Scenario, measuring: Measuring, subjects: dict[str, Subject], rounds: int, told: TextIO) -> None:
    for number in range(1, rounds + 1):
        for name, subject in subjects.items():
            if not subject.absent:
                _measure(measuring, name, subject, number)
                print(f"{scenario.name} {number}/{rounds} {name}{_gist(subject)}", file=told, flush=True)


def _void(subject: Subject, error: Exception) -> None:
    """A subject that was invalid once has no numbers at all."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    subject.runs.clear()
    subject.absent = f"{results.INVALID}: {type(error).__name__}: {error}"


def _measure(measuring: Measuring, name: str, subject: Subject, number: int) -> None:
    begun = _clocks()
    try:
        found = measuring(name)
    except Absent as error:
        subject.absent = str(error)
        return
    except Exception as error:  # noqa: BLE001 -- as in `run`
        _void(subject, error)
        return
    finally:
        os.sync()  # what this one leaves to be written must not be in the way of the next
    elapsed_s, all_s, ours_s = (now - then for now, then in zip(_clocks(), begun, strict=True))
    others_busy = round(max(0.0, all_s - ours_s) / elapsed_s, 3)
    subject.runs.append(Run(number, found.numbers, others_busy, found.series, found.histograms, found.notes))


def _gist(subject: Subject) -> str:
    if subject.absent:
        return f": not measured: {subject.absent}"
    return ": " + ", ".join(f"{name} {value:,.5g}" for name, value in [*subject.runs[-1].numbers.items()][:3])


def _clocks() -> tuple[float, float, float]:
    """The time, what the two cores have worked so far, and what of that was ours, in seconds."""
    return time.perf_counter(), server.cores_busy_s(), family_cpu_s()


def family_cpu_s() -> float:
    """What this process, all that it started and all that these started have used; 0 where the system has no /proc."""
    spent = {pid: (parent, used_s) for pid, parent, used_s in _processes()}
    family, total_s = {os.getpid()}, 0.0
    while family:
        total_s += sum(spent[pid][1] for pid in family if pid in spent)
        family = {pid for pid, (parent, _) in spent.items() if parent in family}
    return total_s


def _processes() -> list[tuple[int, int, float]]:
    """Each process with its parent and what it has used, with those of its children that it has waited for."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        used_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        found.append((int(stat.parent.name), int(fields[1]), used_s))
    return found


class Folder:
    """An empty folder on the disk that is measured, gone with all that is in it at the end."""

    def __init__(self, setting: Setting) -> None:
        self._above = setting.folder

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(dir=self._above))
        return self._path

    def __exit__(self, *exc_info: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
