"""Uploads whose connection is cut, whose acks are lost, whose broker is killed: what is left is a prefix, and once.

The clients here write raw bytes, so that a cut falls where the test wants it.
"""

import asyncio
import gzip
import json
import random
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from broker.limits import KIB, MIB
from tests.eventually import eventually
from tests.live import HOST, Broker

NDJSON = {"content-type": "application/x-ndjson"}
LINES = (b'"a"', b'["b","c"]', '{"é":1}'.encode(), b"null")
CHUNKS: list[Any] = ["a", "b", "c", {"é": 1}, None]
CHUNKS_BEHIND = (0, 1, 3, 4, 5)
"""How many chunks so many lines make."""
AT_ONCE = 12


class Scene:
    """A broker, a client of it, and a session for each attempt."""

    def __init__(self, broker: Broker, http: httpx.AsyncClient) -> None:
        self.broker = broker
        self.http = http

    async def session(self, name: str) -> str:
        assert (await self.http.put(f"/v1/sessions/{name}")).status_code == 201
        return f"/v1/sessions/{name}/generations/g"

    async def chunks(self, generation: str) -> list[Any]:
        session = generation.split("/")[3]
        records = (await self.http.get(f"/v1/stream/sessions/{session}")).json()
        return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]

    async def seq(self, generation: str) -> int:
        """The highest batch that is there, -1 without any."""
        answer = await self.http.get(generation)
        return -1 if answer.status_code == 404 else int(answer.json()["seq"])

    async def batches(self, generation: str, seq: int, lines: Sequence[bytes]) -> Any:
        """Upload the rest; the last line of the answer."""
        headers = {**NDJSON, "producer-seq": str(seq)}
        answer = await self.http.post(f"{generation}/chunks?format=text", content=b"\n".join(lines), headers=headers)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text.splitlines()[-1])

    async def all_uploads_are_over(self) -> None:
        async def none_left() -> bool:
            lines = (await self.http.get("/metrics")).text.splitlines()
            return not sum(float(line.split()[-1]) for line in lines if line.startswith("streamfold_uploads{"))

        await eventually(none_left)
        # What they left in flight lies before this in the log.
        assert (await self.http.put(f"/v1/sessions/{uuid.uuid4().hex}")).status_code == 201


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Scene]:
    async with Broker(folder / "data") as broker, httpx.AsyncClient(base_url=broker.url, timeout=20) as http:
        yield Scene(broker, http)


async def cut(scene: Scene, *sent: bytes) -> bytes:
    """Send these, the first answered by a head before the next, then end; all that the broker said after the last."""
    reader, writer = await asyncio.open_connection(HOST, scene.broker.port)
    for piece in sent[:-1]:
        writer.write(piece)
        await reader.readuntil(b"\r\n\r\n")
    writer.write(sent[-1])
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def at_every(numbers: Iterable[int], attempt: Callable[[int], Awaitable[None]]) -> None:
    """Several at once."""
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(number: int) -> None:
        async with limiter:
            await attempt(number)

    async with anyio.create_task_group() as tasks:
        for number in numbers:
            tasks.start_soon(one, number)


async def require_prefix_and_resume(scene: Scene, generation: str, whole: int, acked: int, number: int) -> None:
    """What is left are the first lines, no more than came `whole` and no fewer than `acked`; the rest follows once."""
    seq = await scene.seq(generation)
    assert acked <= seq < whole, number
    assert await scene.chunks(generation) == CHUNKS[: CHUNKS_BEHIND[seq + 1]], number
    first = seq + 1 if number % 2 and seq + 1 < len(LINES) else 0  # or who knows nothing, and sends all again
    assert (await scene.batches(generation, first, LINES[first:]))["done"]
    assert await scene.chunks(generation) == CHUNKS, number


# -- cuts ------------------------------------------------------------------------------------------------------------


def head(method: str, target: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: b", *headers, "", ""]).encode()


def last_ack(said: bytes) -> int:
    acks = [line for line in said.split(b"\r\n") if line.startswith(b'{"seq"')]
    return json.loads(acks[-1])["seq"] if acks else -1


async def test_ndjson_upload_cut_at_every_byte_leaves_whole_lines_in_order(tmp_path: Path) -> None:
    headers = ("content-type: application/x-ndjson", "producer-seq: 0", "transfer-encoding: chunked")
    parts = [b"%x\r\n%b\n\r\n" % (len(line) + 1, line) for line in LINES]
    body = b"".join(parts) + b"0\r\n\r\n"
    whole_at = [length - 2 for length in accumulate(map(len, parts))]  # a line ends before the part that it is in
    begin_bytes = len(head("POST", "/v1/sessions/s000/generations/g/chunks?format=text", *headers))
    sizes = range(begin_bytes + len(body) + 1)
    acked = dict.fromkeys(sizes, -1)
    async with staged(tmp_path) as scene:

        async def attempt(size: int) -> None:
            generation = await scene.session(f"s{size:03}")
            request = head("POST", f"{generation}/chunks?format=text", *headers) + body
            acked[size] = last_ack(await cut(scene, request[:size]))

        async def look(size: int) -> None:
            whole = sum(begin_bytes + at <= size for at in whole_at)
            await require_prefix_and_resume(scene, f"/v1/sessions/s{size:03}/generations/g", whole, acked[size], size)

        await at_every(sizes, attempt)
        await scene.all_uploads_are_over()
        for size in (0, 1, begin_bytes - 1):
            assert await scene.seq(f"/v1/sessions/s{size:03}/generations/g") == -1
        await at_every(sizes[begin_bytes:], look)


async def test_plain_post_cut_at_every_byte_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    body = '["a","b","c",{"é":1},null]'.encode()
    headers = ("content-type: application/json", "producer-seq: 0", f"content-length: {len(body)}")
    async with staged(tmp_path) as scene:
        length = len(head("POST", "/v1/sessions/s000/generations/g/chunks?format=text", *headers)) + len(body)
        acked: set[int] = set()

        async def attempt(size: int) -> None:
            generation = await scene.session(f"s{size:03}")
            request = head("POST", f"{generation}/chunks?format=text", *headers) + body
            if b"HTTP/1.1 200" in await cut(scene, request[:size]):
                acked.add(size)

        async def look(size: int) -> None:
            generation = f"/v1/sessions/s{size:03}/generations/g"
            found = await scene.chunks(generation)
            assert found == CHUNKS if size in acked else found in ([], CHUNKS)
            assert found == [] or size == length
            told = {"content-type": "application/json", "producer-seq": "0"}
            again = await scene.http.post(f"{generation}/chunks?format=text", content=body, headers=told)
            assert again.status_code == 200
            assert await scene.chunks(generation) == CHUNKS

        await at_every(range(length + 1), attempt)
        await scene.all_uploads_are_over()
        await at_every(range(length - len(body), length + 1), look)


async def test_websocket_upload_cut_at_every_byte_leaves_whole_frames_in_order(tmp_path: Path) -> None:
    upgrade = ("upgrade: websocket", "connection: Upgrade", "sec-websocket-version: 13")
    key = f"sec-websocket-key: {'A' * 22}=="
    frames = [
        Frame(Opcode.TEXT, b'{"seq":%d,"chunks":%b}' % (seq, line if line.startswith(b"[") else b"[" + line + b"]"))
        for seq, line in enumerate(LINES)
    ]
    wire = [frame.serialize(mask=True) for frame in frames]
    whole_at = list(accumulate(map(len, wire)))
    stream = b"".join(wire)
    sizes = range(len(stream) + 1)
    acked = dict.fromkeys(sizes, -1)
    async with staged(tmp_path) as scene:

        async def attempt(size: int) -> None:
            generation = await scene.session(f"s{size:03}")
            begin = head("GET", f"{generation}/upload?format=text", *upgrade, key)
            said = await cut(scene, begin, stream[:size])
            acks = [json.loads(piece.partition(b"}")[0] + b"}") for piece in said.split(b'{"ack":')[1:]]
            acked[size] = max((ack["seq"] for ack in acks), default=-1)

        async def look(size: int) -> None:
            whole = sum(at <= size for at in whole_at)
            await require_prefix_and_resume(scene, f"/v1/sessions/s{size:03}/generations/g", whole, acked[size], size)

        await at_every(sizes, attempt)
        await scene.all_uploads_are_over()
        await at_every(sizes, look)


# -- lost acks -------------------------------------------------------------------------------------------------------


async def test_every_ack_of_an_ndjson_upload_lost_once_leaves_each_batch_once(tmp_path: Path) -> None:
    headers = ("content-type: application/x-ndjson", "transfer-encoding: chunked")
    async with staged(tmp_path) as scene:
        generation = await scene.session("s")
        for seq, line in enumerate(LINES):
            reader, writer = await asyncio.open_connection(HOST, scene.broker.port)
            writer.write(head("POST", f"{generation}/chunks?format=text", *headers, f"producer-seq: {seq}"))
            writer.write(b"%x\r\n%b\n\r\n" % (len(line) + 1, line))
            await eventually(partial(reached, scene, generation, seq))
            writer.transport.abort()
            del reader
            again = await scene.batches(generation, seq, [line])
            assert (again["seq"], again["duplicate"]) == (seq, True)
        assert await scene.chunks(generation) == CHUNKS


async def reached(scene: Scene, generation: str, seq: int) -> bool:
    return await scene.seq(generation) >= seq


async def test_every_ack_of_a_websocket_upload_lost_once_leaves_each_batch_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as scene:
        generation = await scene.session("s")
        for seq in range(5):
            for is_copy in (False, True):
                async with socket(scene, generation) as upload:
                    await upload.send(json.dumps({"seq": seq, "chunks": [seq]}))
                    if is_copy:
                        ack = json.loads(await upload.recv())["ack"]
                        assert (ack["seq"], ack["duplicate"]) == (seq, True)
                    else:
                        await eventually(partial(reached, scene, generation, seq))
                        upload.transport.abort()
        for is_copy in (False, True):
            async with socket(scene, generation) as upload:
                await upload.send(json.dumps({"seq": 5, "finish": {}}))
                finished = json.loads(await upload.recv())["finished"]
                assert finished.get("duplicate", False) is is_copy
        assert await scene.chunks(generation) == list(range(5))


def socket(scene: Scene, generation: str) -> connect:
    return connect(f"ws://{HOST}:{scene.broker.port}{generation}/upload?format=text", compression=None)


# -- duplicates and disorder -----------------------------------------------------------------------------------------


async def test_copies_in_disorder_over_several_connections_leave_each_batch_once(tmp_path: Path) -> None:
    chance = random.Random(7)
    lines = [b'"%d"' % n for n in range(60)]
    async with staged(tmp_path) as scene:
        generation = await scene.session("s")
        query = "format=text"

        async def posts() -> None:
            """Every batch twice, none in its place, until none is refused any more."""
            left = [*range(60), *range(60)]
            while left:
                chance.shuffle(left)
                refused = []
                for seq in left[:40]:
                    answer = await scene.http.post(
                        f"{generation}/chunks?{query}",
                        content=lines[seq],
                        headers={"content-type": "application/json", "producer-seq": str(seq)},
                    )
                    if answer.status_code != 200:
                        assert answer.json()["code"] == "SEQ_GAP"
                        refused.append(seq)
                left = refused + left[40:]

        async def uploads() -> None:
            while await scene.seq(generation) < 59:
                first = chance.randrange(max(await scene.seq(generation), 0) + 1)
                assert (await scene.batches(generation, first, lines[first : first + 20]))["done"]

        await asyncio.gather(posts(), posts(), uploads(), uploads())
        assert await scene.chunks(generation) == [str(n) for n in range(60)]


# -- crashes ---------------------------------------------------------------------------------------------------------

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


# -- hostile bodies --------------------------------------------------------------------------------------------------

GROWTH_MAX = 128 * MIB
"""What one body of bare digits costs for a moment, 64 bytes a chunk, and half as much again; the bombs hold more."""


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * KIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of another process in a file")
async def test_hostile_uploads_are_refused_and_cost_little_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(160 * MIB), 9)
    hostile: dict[str, tuple[bytes, dict[str, str], str]] = {
        "bomb": (bomb, {"content-encoding": "gzip"}, "BODY_TOO_LARGE"),
        "bomb of empty lines": (gzip.compress(b"\n" * 32 * MIB, 9), {"content-encoding": "gzip"}, "BODY_TOO_LARGE"),
        "endless line": (b'"' + b"x" * 5 * MIB, {}, "BODY_TOO_LARGE"),
        "endless number": (b"1" * 5 * MIB, {}, "BODY_TOO_LARGE"),
        "deep": (b"[" * 100_000 + b"]" * 100_000 + b"\n", {}, "INVALID_JSON"),
        "not UTF-8": (b'"\xff\xfe"\n', {}, "INVALID_JSON"),
        "many chunks": (b"[" + b"1," * MIB + b"1]\n", {}, "BODY_TOO_LARGE"),
    }
    async with staged(tmp_path) as scene:
        generation = await scene.session("s")
        await scene.batches(generation, 0, LINES[:1])
        before = resident_bytes(scene.broker.pid)
        for name, (body, coding, code) in hostile.items():
            headers = {**NDJSON, **coding, "producer-seq": "1"}
            answer = await scene.http.post(f"{generation}/chunks", content=body, headers=headers)
            assert answer.json()["code"] == code, name
            mid = await scene.http.post(  # the same behind a good line
                f"{generation}/chunks?format=text",
                content=LINES[0] + b"\n" + body,
                headers={**NDJSON, "producer-seq": "0"},
            )
            if not coding:
                assert [next(iter(json.loads(line))) for line in mid.text.splitlines()] == ["seq", "error"], name
                assert json.loads(mid.text.splitlines()[-1])["error"]["code"] == code, name
        plain = {"content-type": "application/json", "content-encoding": "gzip", "producer-seq": "1"}
        for method, target in (("POST", f"{generation}/chunks"), ("PUT", "/v1/stream/raw")):
            answer = await scene.http.request(method, target, content=bomb, headers=plain)
            assert answer.json()["code"] == "BODY_TOO_LARGE"
        assert resident_bytes(scene.broker.pid) - before < GROWTH_MAX
        assert await scene.chunks(generation) == CHUNKS[:1]
        assert (await scene.http.get("/health")).status_code == 200
