"""The file of a spool: its bound, its one owner, what is done about damage, and the rate at which it is emptied."""

import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from producer import Producer, SpoolCorrupt, SpooledGeneration, SpoolError, SpoolFull, SpoolInUse
from producer.batcher import Batch
from producer.pace import Pace
from producer.spool import APPLICATION_ID, VERSION, Spool, State
from tests.live import free_port
from tests.producer.conftest import IMPATIENT
from tests.producer.model import ModelBroker, serving
from tests.producer.spooled import BRIEF, OFFLINE, whole, written_offline
from tests.producer.spooling_app import text_of


async def test_spool_is_bounded_and_has_room_again_when_the_broker_is_back(broker: ModelBroker, path: Path) -> None:
    limits = replace(IMPATIENT, spool_bytes_max=10_000)
    port = free_port()
    async with (
        Producer(f"http://127.0.0.1:{port}", limits=limits, spool=path) as producer,
        producer.spooled("s", "g", format="text") as generation,
    ):
        written = await written_until_full(generation, "x" * 500)
        assert 15 <= written < 20
        async with serving(broker, port):
            await generation.delivered(20)
            await generation.write("y")
            await generation.finish()
            await generation.delivered(20)
    assert whole(broker) == "x" * 500 * written + "y"


async def written_until_full(generation: SpooledGeneration, text: str) -> int:
    written = 0
    with suppress(SpoolFull):
        while True:
            await generation.write(text)
            written += 1
    return written


async def test_two_processes_cannot_have_one_spool(path: Path) -> None:
    async with Producer(OFFLINE, limits=BRIEF, spool=path):
        with pytest.raises(SpoolInUse):
            await Producer(OFFLINE, limits=BRIEF, spool=path).__aenter__()
        code = f"from pathlib import Path; from producer.spool import Spool; Spool(Path({str(path)!r}), bytes_max=1)"
        command = [sys.executable, "-c", code]
        other = await anyio.to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, check=False))
        assert b"SpoolInUse" in other.stderr
    async with Producer(OFFLINE, limits=BRIEF, spool=path):
        pass  # it is free again


@pytest.mark.parametrize("damage", [slice(0, 2000), slice(100, 2000), slice(4096, 16_384)])
async def test_damaged_spool_is_set_aside_and_said_to_be(path: Path, damage: slice) -> None:
    await written_offline(path, [text_of(n) + 200 * "x" for n in range(60)])
    damaged = bytearray(path.read_bytes())
    damaged[damage] = b"\xee" * (damage.stop - damage.start)
    path.write_bytes(damaged)
    with pytest.raises(SpoolCorrupt) as caught:
        await Producer(OFFLINE, limits=BRIEF, spool=path).__aenter__()
    assert caught.value.set_aside is not None
    assert Path(caught.value.set_aside).read_bytes() == damaged, "as it was"
    async with Producer(OFFLINE, limits=BRIEF, spool=path) as producer:
        assert await producer.outbox.unfinished() == [], "the next one begins anew"


async def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="left alone"):
        await Producer(OFFLINE, limits=BRIEF, spool=path).__aenter__()
    assert path.read_bytes() == before


async def test_spool_of_a_later_version_is_left_alone(path: Path) -> None:
    Spool(path, bytes_max=1).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    database.close()
    with pytest.raises(SpoolError, match="version"):
        Spool(path, bytes_max=1)


def test_changes_that_fail_together_leave_nothing(path: Path) -> None:
    spool = Spool(path, bytes_max=1000)
    [kept] = spool.transact([lambda spool: spool.begin("s", "g", {})])

    def fail(_: Spool) -> None:
        raise sqlite3.OperationalError("anything")

    with pytest.raises(SpoolError):
        spool.transact([lambda spool: spool.add(kept.id, b"1"), fail])
    assert spool.bytes == 0
    assert spool.transact([lambda spool: spool.page(kept.id, -1, 10)]) == [[]]
    spool.close()


def test_bytes_of_the_spool_are_those_of_what_is_in_it(path: Path) -> None:
    spool = Spool(path, bytes_max=1000)
    [kept] = spool.transact([lambda spool: spool.begin("s", "g", {})])
    spool.transact([lambda spool: spool.add(kept.id, b'"abc"'), lambda spool: spool.add(kept.id, b'"d"')])
    assert spool.bytes == 8
    spool.transact([lambda spool: spool.seal(kept.id, 0, Batch(b'["abc"]', 1, 5, written=1))])
    assert spool.bytes == 10
    spool.close()
    spool = Spool(path, bytes_max=1000)
    assert spool.bytes == 10
    spool.transact([lambda spool: spool.acknowledge(kept.id, 0)])
    assert spool.bytes == 3
    spool.transact([lambda spool: spool.conclude(kept.id, State.DELIVERED)])
    assert spool.bytes == 0
    spool.close()


def test_pace_lets_a_burst_through_and_then_so_many_bytes_a_second() -> None:
    pace = Pace(bytes_per_s=100, burst_bytes=1000)
    assert pace.take(1000, 50.0) == 0.0
    assert pace.take(50, 50.0) == 0.5
    assert pace.take(50, 50.5) == 0.5
    assert pace.take(1000, 1000.0) == 0.0


async def test_catching_up_keeps_to_its_rate(url: str, broker: ModelBroker, path: Path) -> None:
    await written_offline(path, ["x" * 1000] * 30, merging="never")
    limits = replace(IMPATIENT, catch_up_bytes_per_s=20_000, batch_bytes_max=2_100)
    async with Producer(url, limits=limits, spool=path) as producer:
        began_s = anyio.current_time()
        await producer.outbox.drained(20)
        assert anyio.current_time() - began_s >= 0.4, "a third leaves after the burst, in half a second"
    assert whole(broker) == "x" * 30_000
