"""Uploads whose broker is killed or told to leave: what was acknowledged is there, and once."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.eventually import eventually
from tests.faults.upload_scene import Scene, head, reached, socket, staged
from tests.live import HOST

KILLED_AT = (60, 150)
BATCHES = 200
Uploading = Callable[[Scene, str, range, Callable[[int], None]], Awaitable[None]]
"""Sends those batches, then hears acks until all BATCHES are durable, or the broker is gone: that raises."""


async def test_broker_killed_under_ndjson_uploads_keeps_what_it_acked_and_doubles_nothing(tmp_path: Path) -> None:
    async def upload(scene: Scene, generation: str, seqs: range, acked: Callable[[int], None]) -> None:
        reader, writer = await asyncio.open_connection(HOST, scene.broker.port)
        headers = ("content-type: application/x-ndjson", "transfer-encoding: chunked", f"producer-seq: {seqs.start}")
        writer.write(head("POST", f"{generation}/chunks?format=text", *headers))
        for seq in seqs:
            line = b'"%d"\n' % seq
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        last = -1
        try:
            while last < BATCHES - 1:
                said = await reader.readline()
                if not said:
                    raise ConnectionResetError
                if said.startswith(b'{"seq"'):
                    last = json.loads(said)["seq"]
                    acked(last)
        finally:
            writer.transport.abort()

    await killed_under(tmp_path, upload)


async def test_broker_killed_under_websocket_uploads_keeps_what_it_acked_and_doubles_nothing(tmp_path: Path) -> None:
    async def upload(scene: Scene, generation: str, seqs: range, acked: Callable[[int], None]) -> None:
        async with socket(scene, generation) as connection:
            for seq in seqs:
                await connection.send(json.dumps({"seq": seq, "chunks": [str(seq)]}))
            last = -1
            while last < BATCHES - 1:
                last = json.loads(await connection.recv())["ack"]["seq"]
                acked(last)

    await killed_under(tmp_path, upload)


async def killed_under(tmp_path: Path, upload: Uploading) -> None:
    """Upload, kill in the midst of it, check what was acked, go on behind that: until all is there."""
    acked = -1

    def told(seq: int) -> None:
        nonlocal acked
        assert seq >= acked
        acked = seq

    async with staged(tmp_path) as scene:
        generation = await scene.session("s")
        for killed_at in KILLED_AT:
            uploading = asyncio.ensure_future(upload(scene, generation, range(acked + 1, killed_at + 20), told))
            await eventually(partial(reached, scene, generation, killed_at))
            await scene.broker.kill()
            with pytest.raises((OSError, EOFError, ConnectionClosed)):
                await uploading
            await scene.broker.start()
            assert await scene.seq(generation) >= acked
        await upload(scene, generation, range(acked + 1, BATCHES), told)
        assert acked == BATCHES - 1
        assert await scene.chunks(generation) == [str(n) for n in range(BATCHES)]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
async def test_sigterm_tells_every_upload_its_last_ack_before_the_broker_leaves(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        one, other = await scene.session("s"), await scene.session("t")
        headers = ("content-type: application/x-ndjson", "transfer-encoding: chunked", "producer-seq: 0")
        reader, writer = await asyncio.open_connection(HOST, scene.broker.port)
        writer.write(head("POST", f"{one}/chunks?format=text", *headers) + b'4\r\n"a"\n\r\n')
        async with socket(scene, other) as upload:
            await upload.send('{"seq":0,"chunks":["a"]}')
            assert json.loads(await upload.recv())["ack"]["seq"] == 0
            await reader.readuntil(b'{"seq":0')
            stopping = asyncio.create_task(scene.broker.stop())
            assert json.loads(await upload.recv())["error"]["code"] == "UNAVAILABLE"
            with pytest.raises(ConnectionClosed) as caught:
                await upload.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
        assert b'"UNAVAILABLE"' in await reader.readuntil(b"}}\n")
        writer.write(b"0\r\n\r\n")
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()
        assert await stopping == 0
        await scene.broker.start()
        assert (await scene.chunks(one), await scene.chunks(other)) == (["a"], ["a"])
