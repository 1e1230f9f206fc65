"""`python -m benchmarks.memory`: whether memory stays flat, on both sides, while answers are written.

One answer of many chunks, then many short answers in one session, each producer in a process of its own. The resident
memory of broker and producer is read from /proc a hundred times and drawn over the chunks that are durable.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import click
import matplotlib as mpl

from benchmarks import facts, server
from benchmarks.results import Measure, Plot
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from producer import Producer

MIB: Final = 1024 * 1024
GROWTH_BYTES_MAX: Final = 2 * MIB
"""Of either process, while the second half of many short answers is written."""
LOOKS: Final = 100
"""How often memory is looked at while one kind of answer is written."""
PACE_CHUNKS_PER_S: Final = 5_000
"""At most: a hundred times what a model says. In one burst all of it would be written before the first checkpoint."""
TEXT: Final = "a token or so, and now and then a longer one. "


class Look(NamedTuple):
    """Resident memory at one moment."""

    durable_chunks: int
    broker_bytes: int
    producer_bytes: int


_of_broker: Final = attrgetter("broker_bytes")
_of_producer: Final = attrgetter("producer_bytes")
_SIDES: Final = (_of_broker, _of_producer)


def resident_bytes(pid: int | str) -> int:
    """Of a process. Raises OSError where the system has no /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kib) * 1024


@click.command()
@click.option("--chunks", default=50_000, show_default=True, help="Of the long answer.")
@click.option("--answers", default=4_000, show_default=True, help="Short ones, in one session.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it there (svg or png).")
@click.option("--check", is_flag=True, help="Exit with 1 unless the second half of the short ones left memory flat.")
def main(*, chunks: int, answers: int, plot: Path | None, check: bool) -> None:
    """Write, look, report."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path()) as name:
        print(facts.collect(Path(name)))
        long = looks(Path(name) / "long", answers=1, chunks=chunks)
        short = looks(Path(name) / "short", answers=answers, chunks=20)
    found = {f"one answer of {chunks:,} chunks": long, f"{answers:,} answers of 20 chunks": short}
    print(
        "\n| | broker, MiB: after a fifth | a half | at the end | producer, MiB: after a fifth | a half | at the end |"
    )
    print("|---|---|---|---|---|---|---|")
    for title, seen in found.items():
        numbers = [of(look) for of in _SIDES for look in (seen[len(seen) // 5], *_second_half(seen))]
        print(f"| {title} | {' | '.join(f'{number / MIB:.1f}' for number in numbers)} |")
    if plot is not None:
        draw(found, plot)
    if check and any(of(last) - of(half) > GROWTH_BYTES_MAX for half, last in [_second_half(short)] for of in _SIDES):
        sys.exit(1)


def _second_half(seen: list[Look]) -> tuple[Look, Look]:
    return seen[len(seen) // 2], seen[-1]


def looks(data_dir: Path, *, answers: int, chunks: int) -> list[Look]:
    """Write so many answers of so many chunks, and look at both processes meanwhile."""
    port = server.free_port()
    command = server.streamfold(port, "sqlite", data_dir)
    with server.running(command, port) as broker, _writer(port, answers, chunks) as lines:
        seen = []
        for line in lines:
            told = json.loads(line)
            seen.append(Look(told["durable"], resident_bytes(broker.pid), told["resident"]))
    return seen


@contextmanager
def _writer(port: int, answers: int, chunks: int) -> Iterator[Iterator[str]]:
    command = [sys.executable, "-m", "benchmarks.memory", "write", str(port), str(answers), str(chunks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield iter(process.stdout.readline, "")
    if process.returncode:
        raise RuntimeError(f"the writer left with {process.returncode}")


def draw(found: dict[str, list[Look]], path: Path) -> None:
    """One panel for each kind of answer."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  after the backend was chosen

    figure, panels = plt.subplots(1, len(found), figsize=(5 * len(found), 3.2), sharey=True, layout="constrained")
    for panel, (title, seen) in zip(panels, found.items(), strict=True):
        durable = [look.durable_chunks for look in seen]
        panel.plot(durable, [look.broker_bytes / MIB for look in seen], label="broker")
        panel.plot(durable, [look.producer_bytes / MIB for look in seen], label="producer")
        panel.set(title=title, xlabel="durable chunks")
        panel.legend(loc="lower right")
    panels[0].set_ylim(bottom=0)  # shared by all, so after all
    panels[0].set_ylabel("resident MiB")
    figure.savefig(path)


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    chunks, answers = (20_000, 200) if setting.quick else (50_000, 1_000)

    def measure(name: str) -> Found:
        with Folder(setting) as folder:
            if name == LONG:
                seen = looks(folder / "data", answers=1, chunks=chunks)
            else:
                seen = looks(folder / "data", answers=answers, chunks=20)
        early, last = seen[len(seen) // 5], seen[-1]
        return Found(
            {
                "broker, after a fifth, MiB": early.broker_bytes / MIB,
                "broker, at the end, MiB": last.broker_bytes / MIB,
                "producer, after a fifth, MiB": early.producer_bytes / MIB,
                "producer, at the end, MiB": last.producer_bytes / MIB,
            },
            {
                "broker MiB": [(float(look.durable_chunks), look.broker_bytes / MIB) for look in seen],
                "producer MiB": [(float(look.durable_chunks), look.producer_bytes / MIB) for look in seen],
            },
        )

    yield measure


LONG: Final = "one long answer"
SHORT: Final = "many short answers"

MEMORY: Final = Scenario(
    "memory",
    "Memory while answers are written",
    "Resident memory of broker and producer over one answer of 50,000 chunks (quick: 20,000), and over 1,000 answers "
    "of 20 chunks in one session (quick: 200).",
    {
        f"{side}, {when}, MiB": Measure("MiB", more_is_better=False)
        for side in ("broker", "producer")
        for when in ("after a fifth", "at the end")
    },
    (LONG, SHORT),
    _opened,
    plots=(
        Plot("broker MiB", "resident memory of the broker", "durable chunks", "MiB"),
        Plot("producer MiB", "resident memory of the producer", "durable chunks", "MiB"),
    ),
    rounds=1,
)


# -- the writing process -----------------------------------------------------------------------------------------------


async def write(port: int, answers: int, chunks: int) -> None:
    """Write, and tell about LOOKS times what is durable and how much memory that takes here."""
    step = max(1, answers * chunks // LOOKS)
    durable, began_s = 0, anyio.current_time()
    async with Producer(f"http://127.0.0.1:{port}") as producer:
        await producer.create_session("s")
        for number in range(answers):
            async with producer.generation("s", f"g{number}", format="text") as generation:
                for n in range(chunks):
                    await generation.write(TEXT)
                    if (durable + n) % step == 0:
                        await generation.flush()
                        await anyio.sleep_until(began_s + (durable + n) / PACE_CHUNKS_PER_S)
                        look = {"durable": durable + n, "resident": resident_bytes("self")}
                        print(json.dumps(look), flush=True)
            durable += chunks


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        PORT, ANSWERS, CHUNKS = map(int, sys.argv[2:5])
        anyio.run(write, PORT, ANSWERS, CHUNKS)
    else:
        main()
