"""The heart of the product's proof: a broker that is killed again and again under load, and an audit of what is left.

A seed replays every decision of a run, though not the machine's timing: STREAMFOLD_FAULTS_SEED=… make crash
"""

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.checker import shown, violations
from tests.faults.client import Client
from tests.faults.history import History
from tests.faults.scene import Scene
from tests.faults.storm import Storm, kill_again_and_again, weather
from tests.live import Broker, is_healthy

SHORT_LIVES = {"STREAMFOLD_LONG_POLL_S": "1", "STREAMFOLD_SSE_LIFE_S": "1"}
"""Readers meet the ends that come by themselves, too."""
CHECKPOINTS = {
    "usual": SHORT_LIVES,
    # One is nearly always under way, so kills land inside checkpoints, trims and sweeps.
    "incessant": {**SHORT_LIVES, "STREAMFOLD_CHECKPOINT_INTERVAL_S": "0.005"},
}


@pytest.fixture
def seed() -> str:
    return os.environ.get("STREAMFOLD_FAULTS_SEED") or f"{random.SystemRandom().randrange(16**8):08x}"


@pytest.mark.parametrize("checkpoints", CHECKPOINTS)
async def test_killed_broker_loses_doubles_and_reorders_nothing(
    checkpoints: str, tmp_path: Path, kills: int, seed: str
) -> None:
    print(f"seed {seed}; to replay its decisions: STREAMFOLD_FAULTS_SEED={seed}")
    history = await weather_a_storm(tmp_path / "data", CHECKPOINTS[checkpoints], -(-kills // len(CHECKPOINTS)), seed)
    found = violations(history)
    assert not found, shown(found)


async def weather_a_storm(data_dir: Path, env: Mapping[str, str], kills: int, seed: str) -> History:
    """Everything that was written and seen while the broker was killed, and what is there when all is settled."""
    history = History()
    began_at = time.monotonic()
    broker = Broker(data_dir, env=env)
    with Client(broker.port, history) as client:
        async with broker:
            storm = Storm(client, history, seed)
            scene = Scene(storm)
            async with scene.reading():
                await weather(storm, kill_again_and_again(storm, broker, kills), scene.writing())
                weathered_s = time.monotonic() - began_at
                await scene.settle()
                await scene.look_at_everything()
                await scene.every_reader_arrives()
            await scene.read_from_the_middle()
            assert is_healthy(broker.port)
            assert await broker.stop() == 0
            await broker.start()
            await scene.nothing_has_changed()
            await scene.last_batches_are_duplicates()
    print(f"{kills} kills ({storm.kills_in_startup} while it started) in {weathered_s:.1f} s; {scene.summary()}")
    scene.complain_if_it_proves_little(kills)
    return history
