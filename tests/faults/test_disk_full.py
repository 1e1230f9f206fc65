"""A full disk: a definite, retryable refusal, and nothing else. What was acknowledged stays, and writing goes on."""

from pathlib import Path

import anyio

from tests.faults.checker import shown, violations
from tests.faults.client import STREAMS, Client
from tests.faults.history import History, Told, Write
from tests.faults.http1 import Connections
from tests.faults.scene import Scene
from tests.faults.small_disk import BrokerOnSmallDisk, SmallDisk
from tests.faults.storm import Storm
from tests.faults.writers import Stream, created
from tests.live import is_healthy

STREAM = Stream("json", "application/json")
PAD = "x" * 200_000
REFUSALS = 20
ROUNDS = 3


async def test_full_disk_refuses_definitely_and_goes_on_when_there_is_room(disk: SmallDisk, tmp_path: Path) -> None:
    history = History()
    broker = BrokerOnSmallDisk(disk, tmp_path / "broker.log")
    async with broker:
        with Client(broker.port, history) as client:
            scene = Scene(Storm(client, history, "disk"))
            await created(scene.storm, STREAM, scene.storm.chance("create"))
            appends = Appends(broker.port, history)
            for _ in range(ROUNDS):
                await appends.until(Told.ACKED)
                disk.fill()
                await appends.until(Told.REFUSED)
                for _ in range(REFUSALS):
                    disk.fill()
                    await appends.next()
                assert is_healthy(broker.port)
                assert len((await scene.whole("json")).content) == appends.acked
                disk.free()
                await appends.until(Told.ACKED)
            appends.close()
            await broker.restart()
            history.logs.append(await scene.whole("json"))
    found = violations(history)
    assert not found, shown(found)
    refused = [write for write in history.writes if write.told == [Told.REFUSED]]
    assert len(refused) >= ROUNDS


class Appends:
    """Appends with texts of their own, each attempted once; a 503 has to say that it is definite and can be retried."""

    def __init__(self, port: int, history: History) -> None:
        self._connections = Connections("127.0.0.1", port)
        self._history = history
        self.acked = 0

    async def until(self, told: Told) -> None:
        """Append until one is told this."""
        with anyio.fail_after(30):
            while (await self.next()).told[-1] is not told:
                continue

    async def next(self) -> Write:
        write = self._history.write("json", [f'"{len(self._history.writes)} {PAD}"'])
        headers = {"content-type": STREAM.content_type}
        async with self._connections.exchange("POST", f"{STREAMS}/json", headers, STREAM.body(write.texts)) as exchange:
            body = await exchange.body()
        head = exchange.head
        if head.status == 204:
            self.acked += 1
            write.told.append(Told.ACKED)
            write.offsets.add(head.headers["stream-next-offset"])
        else:
            assert head.status == 503, body
            assert "retry-after" in head.headers
            assert b'"retryable":true' in body
            assert b'"code":"UNAVAILABLE"' in body
            write.told.append(Told.REFUSED)
        return write

    def close(self) -> None:
        self._connections.close()
