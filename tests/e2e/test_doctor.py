"""`streamfold doctor`, as an operator meets it: beside a broker that runs, was killed, or will not start any more."""

import json
from pathlib import Path

import pytest

from producer import Producer
from producer.spool import Spool
from tests.e2e.test_cli import run_at
from tests.live import Broker, BrokerFailedError


def doctor(*arguments: str | Path) -> tuple[int, str]:
    """Its exit status, and what it said."""
    done = run_at("", ("doctor", *map(str, arguments)))
    return done.returncode, done.stdout + done.stderr


async def test_from_a_broker_that_runs_to_a_folder_that_was_salvaged(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "data", engine="sqlite", env={"STREAMFOLD_CHECKPOINT_INTERVAL_S": "3600"})
    async with broker:
        async with Producer(broker.url) as producer:
            for n in range(6):
                await producer.create_session(f"s{n}")
        status, said = doctor(broker.data_dir)
        assert (status, "in use" in said) == (4, True)
        await broker.kill()

        status, said = doctor(broker.data_dir, "--json")
        assert (status, json.loads(said)["verdict"]) == (0, "healthy")

        (path,) = (broker.data_dir / "journal").glob("*.log")
        data = bytearray(path.read_bytes())
        data[data.index(b"sessions/s3")] ^= 1
        path.write_bytes(data)
        with pytest.raises(BrokerFailedError, match="streamfold doctor"):
            await broker.start()
        status, said = doctor(broker.data_dir)
        assert status == 3
        assert "damage: 0000000000000001.log, bytes " in said
        assert "entries 4 to 4" in said
        assert "streams with later entries: sessions/s4, sessions/s5" in said
        assert "at the next start: refused: " in said
        assert "up to index 3; what came later, up to index 6 at least, was acknowledged and is lost" in said

        status, said = doctor(broker.data_dir, "--salvage", tmp_path / "new")
        assert (status, "up to index 3" in said) == (0, True)
        assert doctor(broker.data_dir, "--salvage", tmp_path / "new")[0] == 1

    async with Broker(tmp_path / "new", engine="sqlite") as salvaged:
        listed = run_at(salvaged.url, ("sessions",))
        assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["s2", "s1", "s0"]


def test_spool_that_is_pointed_to_is_looked_at_too(tmp_path: Path) -> None:
    spool = tmp_path / "spool.sqlite"
    held = Spool(spool, bytes_max=1 << 20)
    folder = tmp_path / "empty"
    folder.mkdir()
    assert doctor(folder, "--spool", spool)[0] == 1  # there is no store
    (folder / "journal").mkdir()
    status, said = doctor(folder, "--spool", spool)
    assert (status, "store.sqlite is missing" in said, "spool.sqlite: in use" in said) == (3, True, True)
    held.close()
    assert "spool.sqlite: healthy" in doctor(folder, "--spool", spool)[1]
