"""Three nodes on three nodes of Kafka, while all kinds of them are killed and frozen; and an audit of what is left.

Producers pipeline through all nodes at once and repeat what got no answer wherever they come to; readers resume at any
node. STREAMFOLD_FAULTS_SEED=… make crash-kafka replays a run's decisions, though not the machine's timing.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path

import pytest

from tests.faults.checker import shown, violations
from tests.faults.client import Client
from tests.faults.cluster.disasters import FAR, LONG, SHORT, Disaster, leader_killed, node_paused
from tests.faults.cluster.lives import Lives
from tests.faults.cluster.network import Network
from tests.faults.cluster.nodes import Nodes
from tests.faults.cutter import Cutter
from tests.faults.history import History
from tests.faults.scene import Scene
from tests.faults.storm import Storm, weather
from tests.kafka.cluster import KafkaCluster

SHORT_LIVES = {"STREAMFOLD_LONG_POLL_S": "1", "STREAMFOLD_SSE_LIFE_S": "2"}
CALM_S = 1.0
"""Of traffic before each disaster, and after the last."""
PATIENCE_S = 5.0
"""After which a client lets a request go and asks another node."""

LINE_BYTES_MIN, LINE_BYTES_MAX = 2_000, 200_000
"""What a bad line carries before it breaks: some requests, or some hundreds."""
LINE_BYTES_WHOLE = 1 << 40


@pytest.fixture
def seed() -> str:
    return os.environ.get("STREAMFOLD_FAULTS_SEED") or f"{random.SystemRandom().randrange(16**8):08x}"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", SHORT)
async def test_cluster_in_a_storm_loses_doubles_and_reorders_nothing(
    name: str, tmp_path: Path, three_nodes: KafkaCluster, seed: str
) -> None:
    await weathered(Nodes(tmp_path, three_nodes, env=SHORT_LIVES), SHORT[name], seed)


@pytest.mark.usefixtures("all_faults")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LONG)
async def test_cluster_in_a_long_storm_loses_doubles_and_reorders_nothing(
    name: str, tmp_path: Path, three_nodes: KafkaCluster, seed: str
) -> None:
    await weathered(Nodes(tmp_path, three_nodes, env=SHORT_LIVES), LONG[name], seed)


@pytest.mark.usefixtures("all_faults")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAR)
async def test_cluster_far_from_kafka_loses_doubles_and_reorders_nothing(
    name: str, tmp_path: Path, three_nodes: KafkaCluster, seed: str
) -> None:
    async with Network(three_nodes, seed) as network:
        await weathered(Nodes(tmp_path, three_nodes, env=SHORT_LIVES, network=network), FAR[name], seed)


@pytest.mark.usefixtures("all_faults")
@pytest.mark.timeout(600)
async def test_producers_that_pipeline_through_all_nodes_over_bad_lines_double_and_reorder_nothing(
    tmp_path: Path, three_nodes: KafkaCluster, seed: str
) -> None:
    """KF14: batches overtake each other, are refused as gaps, unanswered or cut off, and come again anywhere."""
    nodes = Nodes(tmp_path, three_nodes, env=SHORT_LIVES)
    async with AsyncExitStack() as lines:
        bad = [Cutter(port, random.Random(f"{seed}/{port}"), LINE_BYTES_MIN, LINE_BYTES_MAX) for port in nodes.ports]
        for line in bad:
            await lines.enter_async_context(line.serving())

        async def lines_mended(_nodes: Nodes, _chance: random.Random) -> None:
            """Else no stream could be looked at that is longer than what a line carries."""
            for line in bad:
                line.bytes_range = (LINE_BYTES_WHOLE, LINE_BYTES_WHOLE)
                line.cut_all()

        disasters = (leader_killed, node_paused, leader_killed, lines_mended)
        await weathered(nodes, disasters, seed, [line.port for line in bad])
        assert all(line.cuts for line in bad)


async def weathered(nodes: Nodes, disasters: tuple[Disaster, ...], seed: str, ports: Sequence[int] = ()) -> None:
    """Write while it all happens; then nothing must be wrong, in the history, at any node, in the log."""
    print(f"seed {seed}; to replay its decisions: STREAMFOLD_FAULTS_SEED={seed}")
    history = History()
    async with nodes:
        port, *other_ports = ports or nodes.ports
        with Client(port, history, *other_ports) as client:
            client.up.set()
            scene = Scene(Storm(client, history, seed), recycles=False)
            client.is_patient, client.request_s_max = False, PATIENCE_S
            async with scene.reading():
                lives = Lives(scene.storm)
                writing = chain(scene.writing(), lives.writing())
                await weather(scene.storm, happening(nodes, disasters, scene.storm), writing)
                await nodes.until_ready()
                client.is_patient = True
                await scene.settle()
                await scene.look_at_everything()
                await scene.every_reader_arrives()
            await scene.read_from_the_middle()
            lost = await lives.faults(nodes)
        print(scene.summary())
        found = [*lost, *violations(history), *await nodes.faults(), *await nodes.stored_faults()]
        assert not found, shown(found)


async def happening(nodes: Nodes, disasters: tuple[Disaster, ...], storm: Storm) -> None:
    chance = storm.chance("disasters")
    for disaster in disasters:
        await asyncio.sleep(CALM_S)
        print(f"{disaster.__name__}, after {len(storm.history.writes)} writes")
        await disaster(nodes, chance)
    await asyncio.sleep(CALM_S)
