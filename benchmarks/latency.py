"""How long an append takes whose sender does not wait for the one before, as the load grows."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from benchmarks import contenders, open_loop, wrk
from benchmarks.contenders import BARE, CONTENDERS, RUST_WAL, STREAMFOLD
from benchmarks.results import Measure, Plot, Point, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.server import Server
from benchmarks.workload import Batches, Invalid, batch, create_streams

CHUNKS: Final = 10
CONNECTIONS: Final = (32, 128)
SHARES: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of what the broker carries in a closed loop; the same requests a second for everyone who carries that."""
P99_LOST_MS: Final = 1_000.0
"""From here on a server does not carry the load, and is not asked for more."""


class Loads:
    """What the broker carries here, measured anew in every round: all in it are offered shares of that.

    Measured once, in a fast minute, it would be more than half of what is carried in the minutes that follow.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._per_s: dict[int, float] = {}
        self._had_a_turn: set[str] = set()

    def of_round(self, name: str) -> dict[int, float]:
        """In requests/s, by the number of connections, in the round in which this one has its turn."""
        if not self._per_s or name in self._had_a_turn:
            self._had_a_turn.clear()
            self._per_s = {connections: self.carried(connections) for connections in CONNECTIONS}
        self._had_a_turn.add(name)
        return self._per_s

    def carried(self, connections: int) -> float:
        """In a closed loop, now; in requests/s."""
        targets = _streams(connections)
        with Folder(self._setting) as folder, contenders.serving(STREAMFOLD, folder / "data") as running:
            create_streams(running.port, targets)
            seen = wrk.run(
                running.port, targets, connections=connections, seconds=self._setting.seconds, folder=folder,
                body=batch(0, CHUNKS),
            )  # fmt: skip
        return seen.requests_per_s


def _streams(connections: int) -> list[str]:
    return [f"/v1/stream/latency-{connections}/{number}" for number in range(connections)]


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    loads = Loads(setting)

    def measure(name: str) -> Found:
        found, per_s = Found({}), loads.of_round(name)
        with Folder(setting) as folder, contenders.serving(name, folder / "data") as running:
            for connections in CONNECTIONS:
                found.numbers[f"{connections} conns: carried in a closed loop, requests/s"] = per_s[connections]
                _climb(found, name, running, connections, per_s[connections], setting)
        return found

    yield measure


def _climb(found: Found, name: str, running: Server, connections: int, carried_per_s: float, setting: Setting) -> None:
    """Offer more and more, until the server is lost."""
    targets = _streams(connections)
    if CONTENDERS[name].keeps:
        create_streams(running.port, targets)
    batches = [Batches(target, CHUNKS) for target in targets]
    shares = (0.5,) if setting.quick or connections != CONNECTIONS[0] else SHARES
    p50, p99 = _series(found, connections)
    for share in shares:
        per_s = share * carried_per_s
        try:
            seen = open_loop.run(
                running.port, batches, per_s=per_s, warm_up_s=setting.warm_up_s, measured_s=setting.seconds
            )
        except Invalid:
            found.notes.append(f"{connections} conns: does not carry {share:.0%} of the load")
            return
        for percentile, text in ((50.0, "p50"), (99.0, "p99"), (99.9, "p99.9")):
            found.numbers[f"{connections} conns, {share:.0%} of the load: {text} ms"] = seen.ms(percentile)
        found.histograms[f"{connections} conns, {share:.0%}"] = seen.encoded()
        p50.append((share * 100, seen.ms(50)))
        p99.append((share * 100, seen.ms(99)))
        if seen.ms(99) > P99_LOST_MS:
            return


def _series(found: Found, connections: int) -> tuple[list[Point], list[Point]]:
    return (
        found.series.setdefault(f"p50 ms, {connections} conns", []),
        found.series.setdefault(f"p99 ms, {connections} conns", []),
    )


def _measures() -> dict[str, Measure]:
    found = {}
    for connections in CONNECTIONS:
        found[f"{connections} conns: carried in a closed loop, requests/s"] = Measure("requests/s")
        for share in SHARES:
            for text in ("p50", "p99", "p99.9"):
                name = f"{connections} conns, {share:.0%} of the load: {text} ms"
                found[name] = Measure("ms", more_is_better=False)
    return found


_HALF: Final = [f"{connections} conns, 50% of the load: p99 ms" for connections in CONNECTIONS]

LATENCY: Final = Scenario(
    "latency",
    "How long a durable append takes, by load",
    f"{CHUNKS} chunks a POST, open loop: requests go out at random times that were chosen before, and their latency "
    "counts from then. The load is a share of what the broker carries in a closed loop in the same round, and the same "
    "requests a second for the others; Node carries a tenth of that, and is left out.",
    _measures(),
    (STREAMFOLD, RUST_WAL, BARE),
    _opened,
    (
        *(Target(name, STREAMFOLD, 5.0) for name in _HALF),
        *(Target(name, STREAMFOLD, 1.5, against=RUST_WAL) for name in _HALF),
    ),
    (
        Plot(
            f"p99 ms, {CONNECTIONS[0]} conns",
            "99 of 100 appends are durable within, 10 chunks each",
            "load, as a share of what the broker carries (%)",
            "ms",
            log_y=True,
        ),
        Plot(
            f"p50 ms, {CONNECTIONS[0]} conns",
            "half of the appends are durable within, 10 chunks each",
            "load, as a share of what the broker carries (%)",
            "ms",
            log_y=True,
        ),
    ),
)
