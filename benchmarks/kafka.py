"""`python -m benchmarks.kafka`: what the Kafka engine costs beside Kafka itself, on a real one started from its jars.

Four questions in one run: what an append waits for beside a bare producer and consumer with the same settings, by
turns; what a core of a node carries; how long nothing is acknowledged when a broker of Kafka is killed; how fast a new
node reads the topic. A run is valid only if afterwards a node that knows nothing but the topic has every batch that was
acknowledged, once and in order.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Final

import click
import msgspec
import uvloop

from benchmarks import facts, kafka_result, load, scenario, server
from benchmarks.bare_kafka import BareKafka, leader_of, until_whole
from benchmarks.kafka_result import (
    AFTER_KILL_S,
    BEFORE_KILL_S,
    CONNECTIONS,
    FAILOVER_STREAMS,
    Carried,
    CatchUp,
    Failover,
    Result,
    Start,
    Turns,
)
from benchmarks.reader_load import Readers
from benchmarks.scenario import Busy
from benchmarks.server import Server
from benchmarks.workload import Invalid, ToStreams, batch
from broker.journal.kafka_topic import KafkaTopic
from broker.partitions import place_of
from tests.kafka.cluster import KafkaCluster, KafkaFailedError

PARTITIONS: Final = 8
JVM: Final = ("-Xms512m", "-Xmx512m", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
"""Unlike that of the tests: with the second compiler."""
TURN_S: Final = 0.1
"""Tens of round trips, and short: whatever else happens on the machine befalls both."""
WARM_UP_TURNS: Final = 80
"""Half a minute: the JVMs of Kafka compile for that long, and what is bare gains from it first."""
CARRIED_S: Final = 2.0
CHUNKS: Final = (1, 10, 1_000)
CATCH_UP_S_MAX: Final = 180.0


class Plan(msgspec.Struct, frozen=True):
    """How much of what."""

    nodes: int = 1
    turns: int = 150
    rounds: int = 3
    kills: int = 3


@click.command()
@click.option("--nodes", type=click.Choice(["1", "3"]), default="1", show_default=True, help="Of Kafka, and of ours.")
@click.option("--turns", default=150, show_default=True, help="Of acknowledgements, then of bare round trips.")
@click.option("--rounds", default=3, show_default=True, help="How often each workload runs, in turn with the others.")
@click.option("--kills", default=3, show_default=True, help="Of the leader of a partition, with three nodes of Kafka.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where Kafka and the nodes keep their data meanwhile. Default: here.",
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it there (svg or png).")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write all results there as JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 unless the floor was reached.")
def main(
    *,
    nodes: str,
    turns: int,
    rounds: int,
    kills: int,
    data_dir: Path,
    plot: Path | None,
    output: Path | None,
    check: bool,
) -> None:
    """Measure the Kafka engine beside Kafka itself."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir) as name:
        print(facts.collect(Path(name)))
        try:
            result = measure(Plan(int(nodes), turns, rounds, kills), Path(name))
        except Invalid as error:
            sys.exit(f"invalid: {error}")
    print("\n" + kafka_result.told(result))
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if plot is not None:
        kafka_result.draw(result, plot)
    if check and not result.turns.passed:
        sys.exit(1)


def measure(plan: Plan, folder: Path) -> Result:
    """All of it, below `folder`. Raises Invalid when something acknowledged was lost, doubled or misplaced."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with _kafka(folder / "kafka", plan.nodes) as kafka:
            turns, carried, batches, catch_up = _steady(plan, folder, kafka, runner)
        if not plan.kills:
            return Result(plan.nodes, turns, carried, catch_up, [], batches)
        try:
            with _kafka(folder / "failover", 3) as kafka:
                failovers, more = _failovers(plan, folder, kafka, runner)
        except KafkaFailedError as error:  # three of them are a lot for a machine that has other work
            print(f"not measured, what a kill does: {str(error).splitlines()[0]}", file=sys.stderr)
            return Result(plan.nodes, turns, carried, catch_up, [], batches)
    return Result(plan.nodes, turns, carried, catch_up, failovers, batches + more)


@contextmanager
def taking_turns(nodes: int, folder: Path) -> Iterator[Callable[[int], Turns]]:
    """Gives what so many turns come to, of a Kafka that has warmed up. Raises Invalid as `measure` does, at the end."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        kafka = stack.enter_context(_kafka(folder / "kafka", nodes))
        topic = KafkaTopic(kafka.bootstrap, "turns", PARTITIONS)
        with _nodes(topic, folder, nodes) as servers:
            work = _Work(servers[0].port, ToStreams(10, 1, "latency"))
            runner.run(_by_turns(WARM_UP_TURNS, kafka, topic, servers, work))
            yield lambda turns: runner.run(_by_turns(turns, kafka, topic, servers, work))
        _start(topic, folder / "new", [work])


# -- acknowledgements, what a core carries, catching up ----------------------------------------------------------------


class _Work:
    """A workload that goes on where it stopped, and what it has had acknowledged."""

    def __init__(self, port: int, workload: ToStreams) -> None:
        self.workload = workload
        self.batches = workload.prepare(port)

    def note(self, seen: load.Load) -> None:
        for one, count in zip(self.batches, seen.acknowledged, strict=True):
            one.first += count

    @property
    def acknowledged(self) -> list[int]:
        return [one.first for one in self.batches]

    @property
    def sent_bytes(self) -> int:
        return sum(one.first * len(one.body) for one in self.batches)


def _steady(
    plan: Plan, folder: Path, kafka: KafkaCluster, runner: asyncio.Runner
) -> tuple[Turns, list[Carried], int, CatchUp]:
    topic = KafkaTopic(kafka.bootstrap, "steady", PARTITIONS)
    with _nodes(topic, folder, plan.nodes) as nodes:
        port = nodes[0].port
        one = _Work(port, ToStreams(10, 1, "latency"))
        many = [_Work(port, ToStreams(chunks, CONNECTIONS, f"of-{chunks}")) for chunks in CHUNKS]
        runner.run(_by_turns(WARM_UP_TURNS, kafka, topic, nodes, one))
        turns = runner.run(_by_turns(plan.turns, kafka, topic, nodes, one))
        carried = _carried(plan, kafka, nodes, many, runner)
    works = [one, *many]
    catch_up = _caught_up(plan, folder, topic, works)
    return turns, carried, sum(sum(work.acknowledged) for work in works), catch_up


def _caught_up(plan: Plan, folder: Path, topic: KafkaTopic, works: Sequence[_Work]) -> CatchUp:
    empty = KafkaTopic(topic.bootstrap, "empty", PARTITIONS)
    _start(empty, folder / "first", [])  # makes the topic
    with_nothing, with_all = [], []
    for number in range(plan.rounds):
        is_last = number == plan.rounds - 1
        with_nothing.append(_start(empty, folder / f"empty-{number}", []))
        with_all.append(_start(topic, folder / f"all-{number}", works if is_last else []))
    entries, sent_bytes = sum(sum(work.acknowledged) for work in works), sum(work.sent_bytes for work in works)
    return CatchUp(entries, sent_bytes / 1e6, with_all, with_nothing)


async def _by_turns(turns: int, kafka: KafkaCluster, topic: KafkaTopic, nodes: Sequence[Server], work: _Work) -> Turns:
    found = Turns([], [], [])
    busy = Busy(nodes[0], [*kafka.pids, *(node.pid for node in nodes[1:])])
    payload = batch(0, work.workload.chunks)
    path = work.workload.path(0)
    # Each node of Kafka is a JVM that gets faster with what it has done: both ways go through the same one.
    leader = await leader_of(topic, place_of(path, PARTITIONS))
    async with BareKafka(KafkaTopic(kafka.bootstrap, "bare", PARTITIONS), led_by=leader) as bare:
        busy.begin()
        for _ in range(turns):
            found.bare_ms.append([1000 * took for took in await bare.round_trips_s(payload, TURN_S)])
            found.ack_ms.append(await _acks_ms(nodes[0].port, work))
            async with Readers(nodes[-1].port, f"/v1/stream/{path}", 1, _ignored):
                found.read_ms.append(await _acks_ms(nodes[0].port, work))
    return msgspec.structs.replace(found, others_busy=busy.end()[2])


async def _acks_ms(port: int, work: _Work) -> list[float]:
    """A turn of acknowledgements."""
    seen = await load.offer(port, work.batches, warm_up_s=0, measured_s=TURN_S)
    work.note(seen)
    return [1000 * took for took in seen.took_s]


def _ignored(_number: int, _now_s: float) -> None:
    """When a reader has an event is measured elsewhere."""


def _carried(
    plan: Plan, kafka: KafkaCluster, nodes: Sequence[Server], works: Sequence[_Work], runner: asyncio.Runner
) -> list[Carried]:
    found = [Carried(work.workload.chunks, [], []) for work in works]
    followers = nodes[1:]
    for number in range(plan.rounds):
        for work, carried in zip(works, found, strict=True):
            busy = Busy(nodes[0], [*kafka.pids, *(node.pid for node in followers)])
            followed = [Busy(node) for node in followers]

            def begin(all_of_them: Sequence[Busy] = (busy, *followed)) -> None:
                for one in all_of_them:
                    one.begin()

            offered = load.offer(nodes[0].port, work.batches, warm_up_s=0.5, measured_s=CARRIED_S, measuring=begin)
            seen = runner.run(offered)
            measured = scenario.measured_of(work.workload, seen, busy.end(), 0)
            work.note(seen)
            carried.rounds.append(measured)
            carried.follower_us.extend(one.end()[0] / measured.requests_per_s * 1e6 for one in followed)
            rate = f"{measured.requests_per_s:,.0f} requests/s"
            print(f"{number + 1}/{plan.rounds} {work.workload.chunks} chunks: {rate}", file=sys.stderr)
    return found


def _start(topic: KafkaTopic, data_dir: Path, works: Sequence[_Work]) -> Start:
    """Until a new node is ready. Raises Invalid unless it then has what was acknowledged."""
    port = server.free_port()
    begun_s = time.perf_counter()
    with server.running(_command(port, topic, data_dir), port, CATCH_UP_S_MAX) as node:
        while not _is_ready(port):
            if time.perf_counter() > begun_s + CATCH_UP_S_MAX:
                raise Invalid("a new node does not get ready")
            time.sleep(0.01)  # it asks until the node is ready; a start is told in steps of this
        start = Start(time.perf_counter() - begun_s, node.cpu_s())
        for work in works:
            work.workload.audit(port, work.acknowledged)
    return start


def _is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


# -- failover ----------------------------------------------------------------------------------------------------------


def _failovers(plan: Plan, folder: Path, kafka: KafkaCluster, runner: asyncio.Runner) -> tuple[list[Failover], int]:
    found: list[Failover] = []
    topic = KafkaTopic(kafka.bootstrap, "failover", PARTITIONS)
    with _nodes(topic, folder / "failover-nodes", 1) as (node,):
        work = _Work(node.port, ToStreams(1, FAILOVER_STREAMS, "failover"))
        for number in range(plan.kills):
            failover, killed = runner.run(_failover(kafka, topic, node, work))
            found.append(failover)
            print(f"kill {number + 1}/{plan.kills}: {failover.gap_s:.2f} s", file=sys.stderr)
            with server.on_cores(server.CORES):
                kafka.start(killed)
            runner.run(until_whole(topic))
    _start(topic, folder / "failover-new", [work])
    return found, sum(work.acknowledged)


async def _failover(kafka: KafkaCluster, topic: KafkaTopic, node: Server, work: _Work) -> tuple[Failover, int]:
    """One kill, with bare round trips beside it; and who was killed."""
    killed, killed_s = await leader_of(topic, 0), 0.0
    async with BareKafka(KafkaTopic(kafka.bootstrap, "bare")) as bare:

        def kill() -> None:
            nonlocal killed_s
            kafka.kill(killed)
            killed_s = time.perf_counter()

        beside = asyncio.create_task(bare.keep_going(BEFORE_KILL_S + AFTER_KILL_S))
        seen = await load.offer(
            node.port, work.batches, warm_up_s=BEFORE_KILL_S, measured_s=AFTER_KILL_S, measuring=kill
        )
        bare_ended_s = await beside
    work.note(seen)
    acks_s, bare_acks_s = ([ended - killed_s for ended in all_of_them] for all_of_them in (seen.ended_s, bare_ended_s))
    return Failover(acks_s, bare_acks_s, max(seen.took_s), _longest_gap_s(bare_acks_s)), killed


def _longest_gap_s(moments_s: Sequence[float]) -> float:
    return max((later - earlier for earlier, later in pairwise(moments_s)), default=0.0)


# -- processes ---------------------------------------------------------------------------------------------------------


@contextmanager
def _kafka(path: Path, nodes: int) -> Iterator[KafkaCluster]:
    """A Kafka on all cores."""
    path.mkdir()
    cluster = KafkaCluster(path, nodes, JVM)
    with ExitStack() as stack:
        with server.on_cores(server.CORES):
            stack.enter_context(cluster)
        yield cluster


@contextmanager
def _nodes(topic: KafkaTopic, folder: Path, count: int) -> Iterator[list[Server]]:
    """So many nodes of ours, on the server's core; killed at the end."""
    with ExitStack() as stack:
        nodes = []
        for number in range(count):
            port = server.free_port()
            nodes.append(stack.enter_context(server.running(_command(port, topic, folder / f"node-{number}"), port)))
        yield nodes


def _command(port: int, topic: KafkaTopic, data_dir: Path) -> server.Command:
    options = ("--kafka-bootstrap", topic.bootstrap, "--kafka-topic", topic.name)
    return server.streamfold(port, "kafka", data_dir, *options, "--kafka-partitions", str(topic.partitions))


if __name__ == "__main__":
    main()
