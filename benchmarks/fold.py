"""`python -m benchmarks.fold`: how fast each format folds, and that an answer costs in proportion to its length.

Every format folds a text, and the input of a tool, in pieces of one word; the session's fold takes the same as records
in bytes. What is measured is processor time of one thread: the chunks are there before, the message is asked for once
at the end. `exponent` is the slope of time over length in a log-log plot: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import click

from benchmarks.results import Measure, Plot, Target
from benchmarks.runner import Found, Measuring, Scenario, Setting
from consumer.fold import Fold
from consumer.plain import JSON, encode
from consumer.session import SessionFold
from tests.consumer.fold.dictations import AI_SDK, DICTATIONS, TOOL_DICTATIONS, Dictation
from tests.consumer.records import chunk, opened

WORDS: Final = ("The ", "one, ", "or ", "the ", "other ", "of ", "them ", "all. ")
DELTAS_PER_S_MIN: Final = 500_000
"""Floor for text deltas of the AI SDK: a thousand answers of five hundred tokens a second."""
EXPONENT_MAX: Final = 1.2
"""Linear, and what caches, the memory's growth and a machine that others use add to that."""
EXPONENT_CHUNKS_MIN: Final = 10_000
"""Shorter runs tell nothing of the exponent: a look at the clock weighs too much."""
RING: Final = 1_000
"""Chunks that are made for a run, which then come round again: a million of them would measure the memory."""

Run = Callable[[int], float]
"""Fold that many chunks; processor time in seconds."""


class Series(NamedTuple):
    """One format at growing lengths: the fastest of some runs for each."""

    name: str
    seconds: dict[int, float]

    @property
    def deltas_per_s(self) -> float:
        """In the longest answer."""
        longest = max(self.seconds)
        return longest / self.seconds[longest]

    @property
    def exponent(self) -> float | None:
        """None if there are too few lengths to say."""
        points = [
            (math.log(chunks), math.log(seconds))
            for chunks, seconds in self.seconds.items()
            if chunks >= EXPONENT_CHUNKS_MIN
        ]
        if len(points) < 2:
            return None
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)

    @property
    def passed(self) -> bool:
        is_fast = self.deltas_per_s >= DELTAS_PER_S_MIN or self.name != f"{AI_SDK}, text"
        return is_fast and (self.exponent is None or self.exponent <= EXPONENT_MAX)


def _words(count: int) -> Iterator[str]:
    for at in range(count):
        yield WORDS[at % len(WORDS)]


def _json_words(count: int) -> Iterator[str]:
    """A list of strings that has come so far."""
    yield '["'
    yield from _words(count - 1)


def _fold_run(format_name: str, said: Dictation, texts: Callable[[int], Iterable[str]]) -> Run:
    def run(count: int) -> float:
        first, *ring = [said.piece(text) for text in texts(RING + 1)]
        folding = Fold.start(format_name)
        for opening in said.opening:
            folding.add(opening)
        folding.add(first)
        return _timed(folding.add, _round(ring, count), lambda: folding.message)

    return run


def _round(ring: list[JSON], count: int) -> list[JSON]:
    return [*ring] * (count // len(ring)) + ring[: count % len(ring)]


def _timed(add: Callable[[JSON], object], chunks: list[JSON], end: Callable[[], object]) -> float:
    gc.collect()
    start = time.thread_time()
    for one in chunks:
        add(one)
    end()
    return time.thread_time() - start


def _session_run(format_name: str, said: Dictation) -> Run:
    def run(count: int) -> float:
        session = SessionFold()
        session.add(opened("g", "m", chunk_format=format_name))
        pieces = [*said.opening, *map(said.piece, _words(RING))]
        numbered = enumerate(pieces[: len(said.opening)] + _round(pieces[len(said.opening) :], count))
        records = (encode(chunk("g", number, "m", piece)) for number, piece in numbered)
        seconds = 0.0
        while some := [*islice(records, 10_000)]:  # a million records at once would be half a gigabyte
            start = time.thread_time()
            for record in some:
                session.add(record)
            seconds += time.thread_time() - start
        start = time.thread_time()
        session.items()
        return seconds + time.thread_time() - start

    return run


def runs() -> dict[str, Run]:
    """All that is measured, by name."""
    return {
        **{f"{name}, text": _fold_run(name, said, _words) for name, said in DICTATIONS.items()},
        **{f"{name}, tool input": _fold_run(name, said, _json_words) for name, said in TOOL_DICTATIONS.items()},
        **{f"session of {name}": _session_run(name, said) for name, said in DICTATIONS.items()},
    }


def lengths(chunks_max: int) -> list[int]:
    """Three for each power of ten, from a thousand."""
    return [
        step * 10**power for power in range(3, 10) for step in (1, 2, 5) if step * 10**power <= chunks_max
    ]  # fmt: skip


def measure(name: str, run: Run, chunk_counts: list[int], rounds: int) -> Series:
    """The fastest of the rounds for each length: what else the machine does can only make a run slower."""
    return Series(name, {count: min(run(count) for _ in range(rounds)) for count in chunk_counts})


def table(found: list[Series]) -> str:
    """For people."""
    lines = [f"{'':45} {'deltas/s':>12}  exponent"]
    for one in found:
        exponent = "-" if one.exponent is None else f"{one.exponent:.2f}"
        lines.append(f"{one.name:45} {one.deltas_per_s:12,.0f}  {exponent:>8}{'' if one.passed else '  NOT PASSED'}")
    return "\n".join(lines)


def plot(found: list[Series], file: Path) -> None:
    """Time over length, both logarithmic, with a line that is linear."""
    import matplotlib as mpl  # noqa: PLC0415  half a second, only for those who ask for a plot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  as above

    kinds = [("text", ", text"), ("tool input", ", tool input"), ("records of a session", "")]
    figure, panels = plt.subplots(1, len(kinds), figsize=(17, 6), sharey=True, layout="constrained")
    for panel, (title, suffix) in zip(panels, kinds, strict=True):
        for one in found:
            is_of_session = one.name.startswith("session of ")
            if one.name.endswith(suffix) and is_of_session is (suffix == ""):
                label = one.name.removesuffix(suffix).removeprefix("session of ")
                panel.plot([*one.seconds], [*one.seconds.values()], marker=".", label=label)
        ends = [min(one.seconds) for one in found][:1] + [max(one.seconds) for one in found][:1]
        panel.plot(ends, [end / DELTAS_PER_S_MIN for end in ends], "k:", label=f"linear, {DELTAS_PER_S_MIN:,}/s")
        panel.set(title=title, xlabel="deltas", xscale="log", yscale="log")
        panel.grid(visible=True, which="both", alpha=0.2)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("processor time (s)")
    figure.savefig(file, dpi=110)


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    all_runs, chunk_counts = runs(), lengths(20_000 if setting.quick else 100_000)

    def measure_once(name: str) -> Found:
        found = measure(name, all_runs[name], chunk_counts, rounds=1)
        exponent = found.exponent
        numbers = {"deltas/s": found.deltas_per_s} | ({} if exponent is None else {"exponent": exponent})
        if not name.endswith(", text"):
            return Found(numbers)  # one picture of all would show none
        return Found(numbers, {"seconds": [(float(chunks), seconds) for chunks, seconds in found.seconds.items()]})

    yield measure_once


FOLD: Final = Scenario(
    "fold",
    "Folding chunks into messages",
    "Processor time of one thread, the chunks there before and the message asked for at the end. The exponent is the "
    "slope of time over length: 1 is linear, 2 quadratic.",
    {"deltas/s": Measure("deltas/s", more_is_better=True), "exponent": Measure("", more_is_better=False)},
    tuple(runs()),
    _opened,
    (
        Target("deltas/s", f"{AI_SDK}, text", DELTAS_PER_S_MIN),
        *(Target("exponent", f"{name}, text", EXPONENT_MAX) for name in DICTATIONS),
    ),
    (Plot("seconds", "processor time to fold a text in words", "chunks", "s", log_x=True, log_y=True),),
    rounds=3,
)


@click.command()
@click.option("--chunks-max", default=1_000_000, show_default=True, help="The longest answer.")
@click.option("--rounds", default=3, show_default=True, help="How often each length is folded; the fastest counts.")
@click.option("--only", multiple=True, help="Leave out what has none of these in its name; may be repeated.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write all times there as JSON.")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw them there, as PNG.")
@click.option("--check", is_flag=True, help="Exit with 1 unless every floor was reached.")
def main(
    *, chunks_max: int, rounds: int, only: tuple[str, ...], output: Path | None, plot_file: Path | None, check: bool
) -> None:
    """Measure the folds of all formats."""
    wanted = {name: run for name, run in runs().items() if not only or any(part in name for part in only)}
    found = []
    for name, run in wanted.items():
        found.append(measure(name, run, lengths(chunks_max), rounds))
        print(f"{name}: {found[-1].deltas_per_s:,.0f} deltas/s", file=sys.stderr)
    print(table(found))
    if output is not None:
        output.write_text(json.dumps({one.name: one.seconds for one in found}, indent=1))
    if plot_file is not None:
        plot(found, plot_file)
    if check and not all(one.passed for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
