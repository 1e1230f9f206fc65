"""consumer/verification.py: a broker's messages against the fold of its log, and a difference where one is planted."""

from __future__ import annotations

import sqlite3
import subprocess
import sysconfig
from pathlib import Path

import anyio.to_thread
import click

from consumer import Reader
from consumer.verification import verify
from producer import Producer
from tests.live import Broker

PROGRAM = str(Path(sysconfig.get_path("scripts"), "streamfold"))


PLANTED = {
    "same": (b"", b"", ""),
    "text": (b"48 ", b"84 ", "message a.message.parts[0].text: the log folds to"),
    "status": (b'"complete","gen', b'"aborted","gen', 'the log folds to "complete", the broker tells "aborted"'),
    "fact": (b'"lane":"main"', b'"land":"main"', "message a.lane: only the log has it"),
    "id": (b'"id":"a"', b'"id":"b"', "message a: the broker does not tell it"),
}
"""By session: what to change in its snapshot, and what is then told."""


async def converse(broker: Broker, session: str) -> None:
    async with Producer(broker.url) as producing:
        await producing.create_session(session, message={"id": "q", "role": "user", "text": "?"})
        async with producing.generation(session, "g", message_id="a", format="text") as writing:
            for number in range(50):
                await writing.write(f"{number} ")


async def plant(broker: Broker) -> None:
    """Change what the stored snapshots say, while the broker is down."""
    await broker.stop()
    store = sqlite3.connect(broker.data_dir / "store.sqlite")
    try:
        for session, (find, replace, _) in PLANTED.items():
            if find:
                changed = store.execute(
                    """UPDATE snapshot_message SET data = CAST(replace(data, ?1, ?2) AS BLOB) WHERE instr(data, ?1) > 0
                    AND incarnation = (SELECT incarnation FROM snapshot WHERE path = 'sessions/' || ?3)""",
                    (find, replace, session),
                )
                assert changed.rowcount == 1
        store.commit()
    finally:
        store.close()
    await broker.start()


async def command(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [PROGRAM, "verify", "--url", broker.url, *arguments]
    return await anyio.to_thread.run_sync(lambda: subprocess.run(line, capture_output=True, text=True, check=False))


async def test_session_that_is_written_to_meanwhile_has_no_difference(broker: Broker) -> None:
    async with Producer(broker.url) as producing, Reader(broker.url) as reader:
        await producing.create_session("s")
        async with producing.generation("s", "g", format="text") as writing:
            for number in range(20):
                await writing.write(f"{number} ")
                assert (await verify(reader, "s")).differences == []


async def test_difference_that_was_planted_is_found(broker: Broker) -> None:
    """N4: what is served is not what the log says. Before, there is none."""
    for session in PLANTED:
        await converse(broker, session)
    good = await command(broker, *PLANTED)
    assert (good.returncode, good.stderr, good.stdout.count("as its log folds")) == (0, "", len(PLANTED))
    await plant(broker)
    async with Reader(broker.url) as reader:
        verdicts = {session: await verify(reader, session) for session in PLANTED}
    for session, (_, _, told) in PLANTED.items():
        differences = verdicts[session].differences
        assert any(told in difference for difference in differences) if told else not differences, differences
    bad = await command(broker, "--all")
    assert (bad.returncode, bad.stderr, bad.stdout.count("as its log folds")) == (1, "", 1)
    assert "message a.message.parts[0].text: the log folds to" in bad.stdout


async def test_session_that_is_not_there_is_an_error(broker: Broker) -> None:
    assert (await command(broker)).returncode == click.UsageError.exit_code
    missing = await command(broker, "nope")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "STREAM_NOT_FOUND" in missing.stderr
