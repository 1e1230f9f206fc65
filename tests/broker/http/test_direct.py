"""Uploads go alike whether our connection hands their parts straight over or a task takes each: over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from broker import limits
from broker.http.direct import text_frame
from broker.http.upload import Upload
from consumer.wire import Code
from tests.broker.http.test_websocket import G, S, Served, serving

WAIT_S_MAX = 10.0


class Lines:
    """An NDJSON upload under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._begun = False

    def say(self, data: bytes) -> None:
        """Send a part of the body, as a chunk of its own."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """End the body."""
        self._writer.write(b"0\r\n\r\n")

    async def line(self) -> Any:
        """The next line of the answer; None at its end."""
        async with asyncio.timeout(WAIT_S_MAX):
            if not self._begun:
                head = await self._reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                self._begun = True
            size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
            chunk = (await self._reader.readexactly(size + 2))[:-2]
        return json.loads(chunk) if chunk else None

    async def until(self, name: str, value: Any = None) -> Any:
        """The first line that has a member of that name (and value). Acks before it rise."""
        last = -1
        while name not in (line := await self.line()) or (value is not None and line[name] != value):
            assert line["seq"] > last
            last = line["seq"]
        return line

    async def ack(self, seq: int) -> Any:
        """The ack of that batch."""
        return await self.until("seq", seq)


@asynccontextmanager
async def upload(served: Served, target: str = G, query: str = "format=text") -> AsyncIterator[Lines]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = f"POST {target}/chunks?{query} HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
    writer.write(f"{head}producer-seq: 0\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    try:
        yield Lines(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each part that a connection has handed over was taken."""
    taken: list[bool] = []
    put = Upload.put_at_once

    def counted(self: Upload, *told: Any) -> bool:
        taken.append(put(self, *told))
        return taken[-1]

    monkeypatch.setattr(Upload, "put_at_once", counted)
    return taken


@pytest.fixture(params=["fast path", "gathered", "plain"])
async def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    if request.param == "gathered":
        monkeypatch.setattr(limits, "UPLOAD_GATHER_FROM", 1)  # as with many uploads
    async with serving(fast=request.param != "plain") as served:
        yield served


@pytest.mark.parametrize("size", [0, 1, 125, 126, 200, 65_535, 65_536, 100_000])
def test_message_of_any_length_is_framed_as_the_library_frames_it(size: int) -> None:
    """RFC 6455, 5.2: how long it is takes one byte, three, or nine."""
    data = b"x" * size
    assert text_frame(data) == Frame(Opcode.TEXT, data).serialize(mask=False)


@pytest.mark.parametrize("fast", [True, False])
async def test_token_a_write_is_taken_without_a_task_where_the_connection_is_ours(
    at_once: list[bool], *, fast: bool
) -> None:
    async with serving(fast=fast) as served, upload(served) as lines:
        for seq in range(20):
            lines.say(b'"%d"\n' % seq)
            assert (await lines.ack(seq))["generationId"] == "g"
        lines.end()
        assert (await lines.until("done"))["seq"] == 19
        assert await lines.line() is None
        assert await served.chunks() == [str(number) for number in range(20)]
    assert at_once.count(True) >= 18 if fast else not at_once


@pytest.mark.parametrize("fast", [True, False])
async def test_frame_a_token_is_taken_without_a_task_where_the_connection_is_ours(
    at_once: list[bool], *, fast: bool
) -> None:
    async with serving(fast=fast) as served, served.upload() as socket:
        for seq in range(20):
            await socket.send(json.dumps({"seq": seq, "chunks": [str(seq)]}))
            assert json.loads(await socket.recv())["ack"]["seq"] == seq
        await socket.send('{"seq":20,"finish":{}}')
        assert json.loads(await socket.recv())["finished"]["status"] == "complete"
        assert await served.chunks() == [str(number) for number in range(20)]
    assert at_once.count(True) >= 18 if fast else not at_once


@pytest.mark.parametrize("lines_a_write", [1, 7, 63, 64, 65, 500])
async def test_more_lines_than_the_window_takes_come_in_their_order(served: Served, lines_a_write: int) -> None:
    async with upload(served) as lines:
        for start in range(0, 1000, lines_a_write):
            lines.say(b"".join(b"%d\n" % number for number in range(start, min(1000, start + lines_a_write))))
        lines.end()
        assert (await lines.until("done"))["seq"] == 999
    assert await served.chunks() == list(range(1000))


async def test_lines_cut_anywhere_are_the_same_batches(served: Served) -> None:
    body = '"é"\n\n["b"]\r\n  \n {"c":1}\n"last, without an end"'.encode()
    for step in (1, 2, 3, 5, 11, 30):
        async with upload(served, f"{S}/generations/g{step}", f"format=text&lane=l{step}") as lines:
            for at in range(0, len(body), step):
                lines.say(body[at : at + step])
                await asyncio.sleep(0)
            lines.end()
            assert (await lines.until("done"))["seq"] == 3
    assert await served.chunks() == ["é", "b", {"c": 1}, "last, without an end"] * 6


@pytest.mark.parametrize("bad", [b"{", b'"\xff"', b"[]", b"[" * 200 + b"]" * 200, b'"' + b"x" * 10_000 + b'"'])
async def test_bad_line_ends_it_behind_those_before_it(served: Served, bad: bytes) -> None:
    async with upload(served) as lines:
        for seq in range(3):
            lines.say(b'"x"\n')
            await lines.ack(seq)
        lines.say(b'"y"\n' + bad + b'\n"z"\n')
        assert (await lines.until("error"))["error"]["code"] in (
            Code.INVALID_JSON,
            Code.EMPTY_ARRAY,
            Code.BODY_TOO_LARGE,
        )
    assert await served.chunks() == ["x", "x", "x", "y"]


@pytest.mark.parametrize("in_flight", [True, False])
async def test_takeover_is_told_whether_or_not_something_is_under_way(served: Served, *, in_flight: bool) -> None:
    async with upload(served) as lines:
        for seq in range(3):
            lines.say(b'"x"\n')
            await lines.ack(seq)
        if in_flight:
            lines.say(b'"x"\n')
        taking = asyncio.create_task(
            served.http.post(f"{S}/generations/other/chunks?format=text", json="B", headers={"producer-seq": "0"})
        )
        while in_flight and not taking.done():
            lines.say(b'"x"\n')
            await asyncio.sleep(0)
        error = (await lines.until("error"))["error"]
        assert (error["code"], error["reason"]) == (Code.FENCED, "superseded")
    assert (await served.chunks())[-1] == "B"


@pytest.mark.parametrize("how", ["delete", "reset", "stop"])
async def test_end_of_the_generation_is_told_to_an_idle_upload(served: Served, how: str) -> None:
    async with upload(served) as lines:
        for seq in range(3):
            lines.say(b'"x"\n')
            await lines.ack(seq)
        await (served.http.delete(S) if how == "delete" else served.http.post(f"{S}/{how}"))
        code = (await lines.until("error"))["error"]["code"]
        assert code == (Code.SESSION_NOT_FOUND if how == "delete" else Code.FENCED)


async def test_client_that_does_not_read_gets_no_ack_twice_and_none_too_early(served: Served) -> None:
    long = b'"' + b"x" * 900 + b'"\n'
    async with upload(served) as lines:
        for _ in range(5_000):
            lines.say(long)
        lines.end()
        assert (await lines.until("done"))["seq"] == 4_999  # and each before it rose


async def test_only_silence_ends_an_upload_however_its_lines_are_taken(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_SILENCE_S", 0.3)
    monkeypatch.setattr(limits, "BODY_DISCARD_S", 0.05)
    async with upload(served) as lines:
        for seq in range(8):
            lines.say(b'"x"\n')
            await lines.ack(seq)
            await asyncio.sleep(0.1)  # longer than the bound altogether, and never in one go
        assert (await lines.until("error"))["error"]["code"] == Code.INVALID_BODY


async def test_both_ways_are_counted_the_same() -> None:
    counted = []
    for fast in (True, False):
        async with serving(fast=fast) as served, upload(served) as lines:
            for seq in range(5):
                lines.say(b'"x"\n')
                await lines.ack(seq)
            lines.end()
            await lines.until("done")
            said = (await served.http.get("/metrics")).text.splitlines()
            counted.append([line for line in said if line.startswith(("streamfold_upload", "streamfold_entries"))])
    assert counted[0] == counted[1]
    assert "streamfold_upload_batches_total 5.0" in counted[0]
