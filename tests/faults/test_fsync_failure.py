"""A failed fsync: nobody knows what the disk holds, so the engine stops and never acknowledges again."""

import os
import platform
import signal
import sys
from itertools import count
from pathlib import Path

import anyio
import pytest

from tests.faults import failing_fsync
from tests.faults.checker import shown, violations
from tests.faults.client import STREAMS, Client
from tests.faults.history import History, Told
from tests.faults.http1 import Connections, Head
from tests.faults.scene import Scene
from tests.faults.storm import Storm
from tests.faults.writers import Stream, created
from tests.live import Broker

STREAM = Stream("json", "application/json")
ACKED_BEFORE = 5
ASKED_AFTER = 10


class BrokerOnBadDisk(Broker):
    """A broker whose every fsync fails from `spoil` on."""

    def spoil(self) -> None:
        os.kill(self.pid, signal.SIGRTMIN)

    def _command(self) -> list[str]:
        _, *arguments = super()._command()
        return [sys.executable, failing_fsync.__file__, *arguments]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has seccomp, by which fsync is made to fail")
async def test_failed_fsync_stops_the_engine_for_good(tmp_path: Path) -> None:
    assert platform.machine() in failing_fsync.FSYNC_NUMBERS
    history = History()
    async with BrokerOnBadDisk(tmp_path / "data") as broker:
        with Client(broker.port, history) as client:
            storm = Storm(client, history, "fsync")
            await created(storm, STREAM, storm.chance("create"))
        appends = Appends(broker.port, history)
        for _ in range(ACKED_BEFORE):
            assert (await appends.next()).status == 204
        broker.spoil()
        with anyio.fail_after(10):
            while (await appends.next()).status == 204:
                continue

        for _ in range(ASKED_AFTER):
            refused = await appends.next()
            assert refused.status == 503
            assert "retry-after" in refused.headers
        assert (await appends.ask("GET", "/health")).status == 503
        assert (await appends.ask("GET", f"{STREAMS}/json?offset=-1")).status in (200, 503)
        assert broker.is_running
        appends.close()

    await audit_after_a_restart(tmp_path / "data", history)


async def audit_after_a_restart(data_dir: Path, history: History) -> None:
    """On a disk that is well again, all that was acknowledged is there."""
    async with Broker(data_dir) as broker:
        with Client(broker.port, history) as client:
            history.logs.append(await Scene(Storm(client, history, "fsync")).whole("json"))
    found = violations(history)
    assert not found, shown(found)
    acked = [write for write in history.writes if write.told == [Told.ACKED]]
    assert len(acked) >= ACKED_BEFORE


class Appends:
    """Appends with texts of their own, each attempted once, over connections of their own."""

    def __init__(self, port: int, history: History) -> None:
        self._connections = Connections("127.0.0.1", port)
        self._history = history
        self._numbers = count()

    async def next(self) -> Head:
        """Append; the head of the answer."""
        write = self._history.write("json", [f'"{next(self._numbers)}"'])
        write.told.append(Told.UNKNOWN)
        head = await self.ask("POST", STREAM.target, STREAM.body(write.texts))
        if head.status == 204:
            write.told[-1] = Told.ACKED
            write.offsets.add(head.headers["stream-next-offset"])
        return head

    async def ask(self, method: str, target: str, content: bytes = b"") -> Head:
        headers = {"content-type": STREAM.content_type}
        with anyio.fail_after(10):
            async with self._connections.exchange(method, target, headers, content) as exchange:
                await exchange.body()
                return exchange.head

    def close(self) -> None:
        self._connections.close()
