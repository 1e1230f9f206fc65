"""`streamfold export` and `import`: the same bytes back from another broker, and nothing of what is no session."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from consumer import Reader
from consumer.archive import BadArchive, export
from consumer.errors import Conflict
from consumer.fold import FORMATS
from consumer.plain import decode, encode
from consumer.verification import verify
from producer import Producer, SessionReceipt
from tests.live import Broker

PROGRAM = str(Path(sysconfig.get_path("scripts"), "streamfold"))
DATA = Path(__file__).parents[1] / "data"
JSON_TYPE = {"content-type": "application/json"}


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "other") as running:
        yield running


async def run(broker: Broker, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = [PROGRAM, *arguments, "--url", broker.url]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(line, input=stdin, capture_output=True, check=False, timeout=50)
    )


async def exported(broker: Broker, session: str = "s") -> bytes:
    async with Reader(broker.url) as reader:
        return b"".join([line async for line in export(reader, session)])


async def imported(broker: Broker, file: bytes, session: str | None = None) -> SessionReceipt:
    async def lines() -> AsyncIterator[bytes]:
        for line in file.splitlines():
            yield line

    async with Producer(broker.url) as producing:
        return await producing.import_session(lines(), session_id=session)


class Author:
    """Writes to a session whatever a session can hold."""

    def __init__(self, broker: Broker, client: httpx.AsyncClient, session: str = "s") -> None:
        self._client = client
        self.url = f"{broker.url}/v1/sessions/{session}"

    async def post(self, target: str, body: bytes = b"", seq: int | None = None) -> Any:
        headers = JSON_TYPE if seq is None else {**JSON_TYPE, "producer-seq": str(seq)}
        answer = await self._client.post(f"{self.url}{target}", content=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    async def answer(self, generation: str, query: str, *batches: bytes, end: bytes = b'{"status":"complete"}') -> None:
        for seq, batch in enumerate(batches):
            await self.post(f"/generations/{generation}/chunks?{query}", batch, seq)
        await self.post(f"/generations/{generation}/finish", end, len(batches))

    async def write_everything(self) -> None:
        metadata = b'{"metadata":{"tags":[1.0,1e2,"\\ud83d"],"x":12345678901234567890}}'
        (await self._client.put(self.url, content=metadata, headers=JSON_TYPE)).raise_for_status()
        await self.post("/messages?txid=t1", b'{ "id" : "q",\n "role": "user", "n": 1.0e2, "half": "\\ud83d" }')
        await self.answer("g", "messageId=a&format=text&actorId=me", b'["\\ud83d","\\ude00"]', b'"x"')
        failed = b'{"status":"failed","error":{"code":9},"usage":{"n":1},"metadata":{"m":[]},"reason":"enough"}'
        await self.answer("f", "messageId=b&lane=side", b'[{"type":"start"}]', end=failed)
        await self.post("/generations/h/chunks?continues=f", b'{"type":"text-start","id":"t"}', 0)
        await self.post("/generations/h/stop", b'{"requestedBy":"ann"}')
        await self.post("/records", b'{"type":"presence","key":"ann","value":{"at": 1}}')
        await self.post("/generations/x/chunks?messageId=c&format=text", b'"1"', 0)
        await self.answer("y", "messageId=d&format=text", b'"supersedes x"')

    async def write_vectors(self) -> None:
        for file in sorted(DATA.glob("*.jsonl")):
            for number, line in enumerate(file.read_bytes().splitlines()[:6]):
                vector: Any = decode(line)
                if isinstance(vector, dict) and vector.get("format") in FORMATS and vector["chunks"]:
                    name = f"{file.stem.replace('_', '-')}-{number}"
                    await self.answer(name, f"format={vector['format']}", encode(vector["chunks"]))


async def test_session_comes_back_from_another_broker_byte_by_byte(broker: Broker, other: Broker) -> None:
    async with httpx.AsyncClient() as client:
        author = Author(broker, client)
        await author.write_everything()
        await author.write_vectors()
        told = (await client.get(f"{author.url}/messages")).json()
        wrote = await run(broker, "export", "s")
        assert (wrote.returncode, wrote.stderr) == (0, b"")
        file = wrote.stdout
        read = await run(other, "import", stdin=file)
        assert (read.returncode, read.stderr) == (0, b"")
        assert await exported(other) == file
        there = Author(other, client)
        assert (await client.get(f"{there.url}/messages")).json()["messages"] == told["messages"]
        before, after = (await client.get(author.url)).json(), (await client.get(there.url)).json()
        assert [before[name] for name in ("createdAt", "metadata")] == [
            after[name] for name in ("createdAt", "metadata")
        ]
        await other.restart()
        assert await exported(other) == file
        async with Reader(other.url) as reader:
            assert (await verify(reader, "s")).differences == []


async def test_imported_session_goes_on_where_it_was(broker: Broker, other: Broker) -> None:
    """Ids stay taken and fences stay up, and what is written goes behind the records that came along."""
    async with httpx.AsyncClient() as client:
        author = Author(broker, client)
        await author.write_everything()
        file = await exported(broker)
        assert (await imported(other, file, "copy")).created
        copy = Author(other, client, "copy")
        headers = {**JSON_TYPE, "producer-seq": "0"}
        late = await client.post(f"{copy.url}/generations/g/chunks?format=text", content=b'"late"', headers=headers)
        assert (late.status_code, late.json()["code"]) == (403, "FENCED")
        taken = await client.post(f"{copy.url}/messages", content=b'{"id":"q","role":"system"}', headers=JSON_TYPE)
        assert (taken.status_code, taken.json()["code"]) == (409, "MESSAGE_EXISTS")
        fence = (await copy.post("/generations/new/chunks?messageId=e&format=text", b'"new"', 0))["fence"]
        assert fence > max(json.loads(line)["value"].get("fence", 0) for line in file.splitlines()[1:-1])
        await copy.post("/generations/new/finish", b"", 1)
        longer = await exported(other, "copy")
        assert longer.splitlines()[1:-1][: file.count(b"\n") - 2] == file.splitlines()[1:-1]
        assert (await client.delete(copy.url)).status_code == 204
        assert (await imported(other, file, "copy")).created


async def test_session_that_is_being_written_is_not_exported(broker: Broker) -> None:
    async with httpx.AsyncClient() as client:
        author = Author(broker, client)
        await author.write_everything()
        await author.post("/generations/open/chunks?format=text", b'"1"', 0)
    done = await run(broker, "export", "s")
    assert done.returncode == 1
    assert b"generation 'open' has not ended" in done.stderr
    assert b"sha256" not in done.stdout


async def test_file_that_is_no_whole_session_is_refused_with_its_line_and_leaves_nothing(
    broker: Broker, other: Broker
) -> None:
    async with httpx.AsyncClient() as client:
        await Author(broker, client).write_everything()
        file = await exported(broker)
        done = await run(other, "import", stdin=file.replace(b'{"type":"message"', b'{"type":"massage"', 1))
        assert (done.returncode, b"Error: line 2: " in done.stderr) == (1, True)
        with pytest.raises(BadArchive, match="the file ends before its last line"):
            await imported(other, b"".join(file.splitlines(keepends=True)[:-1]))
        assert (await client.get(f"{other.url}/v1/sessions/s")).status_code == httpx.codes.NOT_FOUND
        assert (await imported(other, file)).created
        with pytest.raises(Conflict, match="SESSION_EXISTS"):
            await imported(other, file)
        assert await exported(other) == file


async def test_records_that_are_no_session_make_none_whoever_put_them_there(broker: Broker) -> None:
    """The broker looks for itself."""
    wanted = {"stream": "staged", "records": 1, "createdAt": "2026-01-01T00:00:00.000Z"}
    async with Producer(broker.url) as producing, httpx.AsyncClient() as client:
        await producing.streams.create("staged", {"type": "chunk", "key": "g:0", "value": {}, "headers": {}})
        await producing.streams.create("bytes", content_type="text/plain")
        for change, code in (
            ({}, "INVALID_BODY"),
            ({"records": 2}, "INVALID_BODY"),
            ({"records": True}, "INVALID_BODY"),
            ({"createdAt": "yesterday"}, "INVALID_BODY"),
            ({"stream": "sessions/s"}, "INVALID_BODY"),
            ({"stream": ""}, "INVALID_BODY"),
            ({"stream": "bytes"}, "STREAM_NOT_FOUND"),
            ({"stream": "none"}, "STREAM_NOT_FOUND"),
            ({"more": 1}, "INVALID_BODY"),
        ):
            refused = await client.post(f"{broker.url}/v1/sessions/s/import", json={**wanted, **change})
            assert refused.json()["code"] == code, change
        assert (await client.get(f"{broker.url}/v1/sessions/s")).status_code == httpx.codes.NOT_FOUND


async def test_import_whose_answer_was_lost_is_confirmed(broker: Broker) -> None:
    wanted = {"stream": "staged", "records": 0, "createdAt": "2026-01-01T00:00:00.000Z"}
    async with Producer(broker.url) as producing, httpx.AsyncClient() as client:
        await producing.streams.create("staged")
        await producing.streams.create("also")
        url = f"{broker.url}/v1/sessions/s/import"
        first, second = await client.post(url, json=wanted), await client.post(url, json=wanted)
        assert [(answer.status_code, answer.json()["created"]) for answer in (first, second)] == [
            (httpx.codes.CREATED, True),
            (httpx.codes.OK, False),
        ]
        assert first.json()["createdAt"] == second.json()["createdAt"] == wanted["createdAt"]
        another = await client.post(url, json={**wanted, "stream": "also"})
        assert (another.status_code, another.json()["code"]) == (httpx.codes.CONFLICT, "SESSION_EXISTS")
