"""NDJSON uploads over a running broker: order, acks, ends, and every way that one can go wrong."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import App, limits
from broker.core.entry import Entry
from broker.errors import Overloaded, Unavailable
from broker.http.ndjson import Lines
from broker.http.problems import BadRequest
from consumer.wire import Code
from tests.broker.http.asgi import EVENT_WAIT_S_MAX, Client, Exchange, broker
from tests.eventually import eventually

S = "/v1/sessions/s"
G = f"{S}/generations/g"
BODY_BYTES_MAX = 10_000
QUERY = "format=text"


class Upload(Exchange):
    """An upload under way: what the test says goes in when it says it."""

    def __init__(self, app: App, seq: int = 0, query: str = QUERY, target: str = G, **headers: str) -> None:
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        path = f"{target}/chunks"
        told = {"content_type": "application/x-ndjson", "producer_seq": str(seq), **headers}
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in told.items()]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": ""}
        super().__init__(app, {**scope, "query_string": query.encode(), "headers": raw}, [])
        self._begun = False
        self._rest = b""

    async def _receive(self) -> dict[str, Any]:
        return await self._said.get()

    def say(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        self._said.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def end(self) -> None:
        """End the body."""
        self.say(b"", more=False)

    def leave(self) -> None:
        """Close the connection."""
        self._said.put_nowait({"type": "http.disconnect"})

    async def line(self) -> Any:
        """The next line of the answer, None at its end."""
        if not self._begun:
            start = await self.next()
            assert (start["status"], dict(start["headers"])[b"content-type"]) == (200, b"application/x-ndjson")
            self._begun = True
        while b"\n" not in self._rest:
            message = await self.next()
            self._rest += message["body"]
            if not message.get("more_body"):
                assert not self._rest
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    async def ack(self, seq: int) -> Any:
        """The ack that says that `seq` is durable; those before it may have been left out."""
        while (line := await self.line())["seq"] < seq:
            pass
        assert line["seq"] == seq
        return line


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker(body_bytes_max=BODY_BYTES_MAX) as client:
        await client.put(S)
        yield client


async def chunks(client: Client) -> list[Any]:
    """All chunks in the session, in order."""
    records: list[Any] = (await client.get("/v1/stream/sessions/s")).json
    return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]


async def state(client: Client) -> Any:
    return (await client.get(G)).json


# -- the way it goes -------------------------------------------------------------------------------------------------


async def test_lines_are_batches_that_count_up_from_the_first(client: Client) -> None:
    upload = Upload(client.app, query=f"{QUERY}&messageId=m")
    upload.say(b'"a"\n["b","c"]\n{"d":1}\n')
    ack = await upload.ack(2)
    assert (ack["fence"], ack["generationId"]) == (1, "g")
    upload.say(b"null\n")
    upload.end()
    done = await upload.ack(3)
    if "done" not in done:
        done = await upload.line()
    assert (done["seq"], done["done"], await upload.line()) == (3, True, None)
    await upload.task
    assert await chunks(client) == ["a", "b", "c", {"d": 1}, None]
    assert (await client.get(S)).json["offset"] == done["offset"]
    now = await state(client)
    assert (now["seq"], now["chunks"], now["status"], now["messageId"]) == (3, 5, "streaming", "m")


async def test_ack_comes_while_the_body_still_goes_on(client: Client) -> None:
    upload = Upload(client.app)
    for seq in range(3):
        upload.say(b'"x"\n')
        assert "done" not in await upload.ack(seq)
    upload.end()
    assert (await upload.line())["done"]


async def test_body_cut_anywhere_gives_the_same_batches(client: Client) -> None:
    body = '"é"\n\n["b"]\r\n  \n"last, without an end"'.encode()
    for step in range(1, 8):
        target = f"{S}/generations/g{step}"
        upload = Upload(client.app, target=target, query=f"{QUERY}&lane=l{step}")
        for at in range(0, len(body), step):
            upload.say(body[at : at + step])
        upload.end()
        await upload.ack(2)
        await upload.task
    assert await chunks(client) == ["é", "b", "last, without an end"] * 7


async def test_upload_goes_on_where_another_ended(client: Client) -> None:
    await client.post(f"{G}/chunks?{QUERY}", b'"a"', producer_seq="0")
    upload = Upload(client.app, 1, query="")
    upload.say(b'"b"\n"c"\n', more=False)
    await upload.ack(2)
    await upload.task
    assert (await client.post(f"{G}/finish", b"", producer_seq="3")).json["status"] == "complete"
    assert await chunks(client) == ["a", "b", "c"]


async def test_copies_are_told_so_and_where_the_original_landed(client: Client) -> None:
    first = Upload(client.app)
    first.say(b'"a"\n"b"\n', more=False)
    offset = (await first.ack(1))["offset"]
    again = Upload(client.app)
    again.say(b'"a"\n"b"\n')
    copy = await again.ack(1)
    assert (copy["duplicate"], copy["offset"]) == (True, offset)
    again.say(b'"c"\n', more=False)
    assert "duplicate" not in await again.ack(2)
    assert await chunks(client) == ["a", "b", "c"]


async def test_copies_of_an_ended_generation_are_told_so_until_the_end(client: Client) -> None:
    await client.post(f"{G}/chunks?{QUERY}", b'"a"', producer_seq="0")
    await client.post(f"{G}/finish", b"", producer_seq="1")
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    assert (await upload.ack(0))["duplicate"]
    upload.end()
    assert (await upload.line())["done"]


async def test_every_batch_carries_the_uploads_txid(client: Client) -> None:
    upload = Upload(client.app, query=f"{QUERY}&txid=t1")
    upload.say(b'"a"\n"b"\n', more=False)
    await upload.ack(1)
    records = (await client.get("/v1/stream/sessions/s")).json
    assert {record["headers"]["txid"] for record in records} == {"t1"}


@pytest.mark.parametrize("coding", ["gzip", "zlib-flushes"])
async def test_compressed_upload_is_read_as_it_comes(client: Client, coding: str) -> None:
    upload = Upload(client.app, content_encoding="gzip")
    packer = zlib.compressobj(wbits=31)
    for seq in range(3):
        line = b'"%d"\n' % seq
        upload.say(gzip.compress(line) if coding == "gzip" else packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH))
        await upload.ack(seq)
    upload.say(b"" if coding == "gzip" else packer.flush(), more=False)
    assert (await upload.line())["done"]
    assert await chunks(client) == ["0", "1", "2"]


# -- what is refused before anything is there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "query", "headers", "body", "status", "code"),
    [
        ("/v1/sessions/none/generations/g", "", {}, b"1\n", 404, Code.SESSION_NOT_FOUND),
        (G, "", {"producer_seq": "x"}, b"1\n", 400, Code.INVALID_PRODUCER),
        (G, "", {"producer_seq": "3"}, b"1\n", 409, Code.SEQ_GAP),
        (G, "wrong=1", {}, b"1\n", 400, Code.INVALID_PARAMETER),
        (G, "format=none", {}, b"1\n", 400, Code.UNKNOWN_FORMAT),
        (f"{S}/generations/%2e", "", {}, b"1\n", 400, Code.INVALID_PATH),
        (G, "", {"content_encoding": "br"}, b"1\n", 415, Code.UNSUPPORTED_CODING),
        (G, "", {"content_encoding": "gzip"}, b"1\n", 400, Code.INVALID_BODY),
        (G, "", {}, b"", 400, Code.EMPTY_BODY),
        (G, "", {}, b"\n \n\r\n", 400, Code.EMPTY_BODY),
        (G, "", {}, b"[]\n", 400, Code.EMPTY_ARRAY),
        (G, "", {}, b"{\n", 400, Code.INVALID_JSON),
        (G, "", {}, b'"\xff"\n', 400, Code.INVALID_JSON),
        (G, "", {}, b"[" * 200 + b"]" * 200 + b"\n", 400, Code.INVALID_JSON),
        (G, "", {}, b"[" * BODY_BYTES_MAX, 400, Code.INVALID_JSON),
        (G, "", {}, b'"' + b"x" * BODY_BYTES_MAX, 413, Code.BODY_TOO_LARGE),
    ],
)
async def test_upload_that_cannot_begin_is_refused_like_any_request(
    client: Client, target: str, query: str, headers: dict[str, str], body: bytes, status: int, code: Code
) -> None:
    before = (await client.get(S)).body
    upload = Upload(client.app, 0, query, target, **headers)
    upload.say(body, more=False)
    answer = await upload.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (status, code, "close")
    assert (await client.get(S)).body == before
    assert client.app.uploads.in_flight == 0


async def test_first_line_that_never_ends_is_refused_while_it_still_comes(client: Client) -> None:
    upload = Upload(client.app)
    for _ in range(11):
        upload.say(b"x" * 1000)
    upload.end()
    assert (await upload.answer()).code == Code.BODY_TOO_LARGE


async def test_upload_of_which_nothing_comes_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_READ_S", 0.05)
    monkeypatch.setattr(limits, "BODY_DISCARD_S", 0.05)
    assert (await Upload(client.app).answer()).code == Code.INVALID_BODY


async def test_one_upload_too_many_is_told_to_come_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.uploads, "_uploads_max", 1)
    first, second = Upload(client.app), Upload(client.app)
    second.end()
    answer = await second.answer()
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, Code.OVERLOADED, "1")
    first.leave()
    await first.task


# -- what goes wrong on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", Code.INVALID_JSON),
        (b'"\xff"', Code.INVALID_JSON),
        (b"[]", Code.EMPTY_ARRAY),
        (b"[" * 200 + b"]" * 200, Code.INVALID_JSON),
        (b'"' + b"x" * BODY_BYTES_MAX + b'"', Code.BODY_TOO_LARGE),
    ],
)
async def test_bad_line_ends_the_upload_behind_those_before_it(client: Client, line: bytes, code: Code) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n"b"\n' + line + b'\n"c"\n')
    assert "done" not in await upload.ack(1)
    error = (await upload.line())["error"]
    assert error["code"] == code
    upload.end()
    assert await upload.line() is None
    assert await chunks(client) == ["a", "b"]


async def test_stop_is_told_at_once_to_an_idle_upload(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    await client.post(f"{G}/stop", b'{"reason":"enough"}')
    error = (await upload.line())["error"]
    assert (error["code"], error["reason"], error["generationStatus"]) == ("FENCED", "stopped", "aborted")
    upload.leave()
    await upload.task


async def test_takeover_is_told_at_once_to_an_idle_upload(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    await client.post(f"{S}/generations/other/chunks?{QUERY}", b'"b"', producer_seq="0")
    error = (await upload.line())["error"]
    assert (error["code"], error["reason"], error["currentEpoch"]) == ("FENCED", "superseded", 2)
    upload.end()
    assert await upload.line() is None


async def test_delete_of_the_session_is_told_at_once_to_an_idle_upload(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    await client.send("DELETE", S)
    assert (await upload.line())["error"]["code"] == Code.SESSION_NOT_FOUND
    upload.end()
    assert await upload.line() is None


async def test_takeover_in_the_midst_of_batches_ends_the_upload_and_nothing_comes_after(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    taking = asyncio.create_task(client.post(f"{S}/generations/other/chunks?{QUERY}", b'"B"', producer_seq="0"))
    for _ in range(50):
        upload.say(b'"x"\n')
        await asyncio.sleep(0)
    upload.end()
    assert (await taking).status == 200
    acked = 0
    while "error" not in (line := await upload.line()):
        acked = line["seq"]
        assert "done" not in line
    assert line["error"]["code"] == "FENCED"
    assert (await state(client))["seq"] == acked
    assert (await chunks(client))[-1] == "B"


async def test_open_upload_does_not_keep_a_generation_alive_but_empty_lines_do(client: Client) -> None:
    upload = Upload(client.app, query=f"{QUERY}&leaseMs=1000")
    upload.say(b'"a"\n')
    await upload.ack(0)
    loop = asyncio.get_running_loop()
    until = loop.time() + 2.2
    while loop.time() < until:
        upload.say(b"\n")
        await asyncio.sleep(0.1)
    assert (await state(client))["status"] == "streaming"
    beats = client.app.partition.counts.outcomes
    assert sum(count for (kind, _), count in beats.items() if kind == 22) <= 8
    error = (await upload.line())["error"]
    assert (error["reason"], error["generationStatus"]) == ("LEASE_EXPIRED", "failed")
    upload.leave()
    await upload.task


async def test_silent_upload_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOAD_SILENCE_S", 0.05)
    monkeypatch.setattr(limits, "BODY_DISCARD_S", 0.05)
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    assert (await upload.line())["error"]["code"] == Code.INVALID_BODY
    assert await upload.line() is None


async def test_client_that_leaves_loses_nothing_that_was_whole(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n"b"\n"c')
    await upload.ack(1)
    upload.leave()
    await upload.task
    assert await chunks(client) == ["a", "b"]
    assert not client.app.uploads.open


async def test_client_that_takes_nothing_after_the_end_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_STALL_S", 0.05)
    upload = Upload(client.app)
    stuck: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def takes_nothing(message: Any) -> None:
        if message["type"] == "http.response.body":
            await stuck

    monkeypatch.setattr(upload, "_send", takes_nothing)
    upload.say(b'"a"\n', more=False)
    async with asyncio.timeout(EVENT_WAIT_S_MAX):
        await upload.task
    assert not client.app.uploads.open


async def test_client_that_takes_nothing_for_long_gets_one_ack_for_all(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload(client.app)
    gate = asyncio.Event()
    told: list[Any] = []

    async def takes_late(message: Any) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            await gate.wait()
            told.append(json.loads(message["body"]))

    monkeypatch.setattr(upload, "_send", takes_late)
    for _ in range(500):
        upload.say(b'"x"\n')

    async def all_there() -> bool:
        return bool((await client.get(G)).status == 200 and (await state(client))["seq"] == 499)

    await eventually(all_there)
    gate.set()
    upload.end()
    await upload.task
    assert len(told) <= 3
    assert (told[-1]["seq"], told[-1]["done"]) == (499, True)


async def test_no_more_is_read_than_the_window_takes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Any, Entry]] = []
    partition = client.app.partition
    propose = partition.propose_for
    monkeypatch.setattr(partition, "propose_for", lambda waiter, entry: held.append((waiter, entry)))
    upload = Upload(client.app)
    for _ in range(1000):
        upload.say(b'"x"\n')

    async def is_full() -> bool:
        return len(held) == limits.UPLOAD_IN_FLIGHT_MAX

    await eventually(is_full)
    await asyncio.sleep(0)
    assert (len(held), client.app.uploads.in_flight) == (limits.UPLOAD_IN_FLIGHT_MAX,) * 2
    monkeypatch.setattr(partition, "propose_for", propose)
    for waiter, entry in held:
        propose(waiter, entry)
    upload.end()
    while "done" not in (line := await upload.line()):
        pass
    assert line["seq"] == 999


async def test_broker_that_cannot_write_ends_the_upload_behind_what_it_wrote(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    partition = client.app.partition
    propose = partition.propose_for
    monkeypatch.setattr(
        partition, "propose_for", lambda waiter, _entry: waiter.set_exception(Unavailable("the disk is full"))
    )
    upload.say(b'"b"\n')
    error = (await upload.line())["error"]
    assert (error["code"], error["retryable"]) == (Code.UNAVAILABLE, True)
    monkeypatch.setattr(partition, "propose_for", propose)
    upload.end()
    assert await upload.line() is None
    assert await chunks(client) == ["a"]


async def test_broker_without_room_ends_the_upload_retryably(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)

    async def no_room(_entry: Entry) -> None:
        raise Overloaded("no room")

    monkeypatch.setattr(client.app.partition, "has_room", lambda _entry: False)
    monkeypatch.setattr(client.app.partition, "wait_for_room", no_room)
    upload.say(b'"b"\n')
    assert (await upload.line())["error"]["code"] == Code.OVERLOADED
    upload.end()
    assert await upload.line() is None


async def test_drain_ends_every_upload_with_its_last_ack(client: Client) -> None:
    idle, busy = Upload(client.app), Upload(client.app, target=f"{S}/generations/h", query=f"{QUERY}&lane=h")
    unbegun = Upload(client.app, target=f"{S}/generations/i")
    idle.say(b'"a"\n')
    await idle.ack(0)
    busy.say(b'"x"\n' * 10)
    await busy.ack(9)
    client.app.drain()
    draining = asyncio.create_task(client.app.uploads.drain(5))
    for upload in (idle, busy):
        assert (await upload.line())["error"]["code"] == Code.UNAVAILABLE
        upload.end()
        assert await upload.line() is None
    unbegun.end()
    assert (await unbegun.answer()).code == Code.UNAVAILABLE
    await draining
    late = Upload(client.app)
    late.end()
    assert (await late.answer()).code == Code.UNAVAILABLE


async def test_metrics_tell_of_uploads(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n"b"\n')
    await upload.ack(1)
    said = (await client.get("/metrics")).body.decode()
    assert 'streamfold_uploads{mode="ndjson"} 1.0' in said
    assert "streamfold_upload_batches_total 2.0" in said
    upload.leave()
    await upload.task
    said = (await client.get("/metrics")).body.decode()
    assert 'streamfold_uploads{mode="ndjson"} 0.0' in said
    assert 'streamfold_uploads_begun_total{mode="ndjson"} 1.0' in said


def cut_into_lines(data: bytes, step: int) -> list[bytes]:
    lines = Lines(3)
    return [line for at in range(0, len(data), step) for line in lines.feed(data[at : at + step])] + [lines.end()]


def test_lines_are_cut_alike_whatever_the_parts() -> None:
    data = b"a\nbb\n\nccc\nd"
    for step in range(1, len(data) + 1):
        assert cut_into_lines(data, step) == [b"a", b"bb", b"", b"ccc", b"d"]


@pytest.mark.parametrize("data", [b"xxxx", b"xxxx\n", b"a\nxxxx", b"a\nxxxx\nb\n"])
def test_line_beyond_the_bound_is_refused_ended_or_not(data: bytes) -> None:
    for step in (1, 2, len(data)):
        with pytest.raises(BadRequest):
            cut_into_lines(data, step)
