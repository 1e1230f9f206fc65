"""Uploads whose connection is cut, whose acks are lost, that come twice: what is left is a prefix, and once.

The clients here write raw bytes, so that a cut falls where the test wants it.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import accumulate
from pathlib import Path

import anyio
from websockets.frames import Frame, Opcode

from tests.eventually import eventually
from tests.faults.upload_scene import CHUNKS, LINES, Scene, head, reached, socket, staged
from tests.live import HOST

CHUNKS_BEHIND = (0, 1, 3, 4, 5)
"""How many chunks so many lines make."""
AT_ONCE = 12


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
