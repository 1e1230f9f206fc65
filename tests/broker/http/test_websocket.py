"""WebSocket uploads, spoken by a client that others wrote to a broker behind a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from hypothesis import given, strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from broker import App, Settings, create_app, limits
from broker.core.entry import Entry, Kind
from broker.errors import Unavailable
from broker.http.direct import UploadSocketProtocol
from broker.http.fast_reads import protocol
from broker.http.problems import BadRequest
from broker.http.websocket import members
from consumer.plain import NotJSON, decode
from tests.eventually import eventually

S = "/v1/sessions/s"
G = f"{S}/generations/g"
QUERY = "format=text"
BODY_BYTES_MAX = 10_000


class Served(NamedTuple):
    """A broker behind a server, and a client of it."""

    app: App
    server: uvicorn.Server
    http: httpx.AsyncClient
    port: int

    def upload(self, target: str = G, query: str = QUERY) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}{target}/upload?{query}", compression=None)

    async def chunks(self) -> list[Any]:
        """All chunks in the session, in order."""
        records = (await self.http.get("/v1/stream/sessions/s")).json()
        return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]


@asynccontextmanager
async def serving(*, fast: bool = True, async_acks: bool = False) -> AsyncIterator[Served]:
    app = create_app(Settings(engine="memory", body_bytes_max=BODY_BYTES_MAX, async_acks=async_acks))
    config = uvicorn.Config(
        app,
        port=0,
        http=protocol(app.fast_appends, app.fast_reads) if fast else "httptools",
        ws=UploadSocketProtocol if fast else "websockets-sansio",
        ws_max_size=BODY_BYTES_MAX + limits.FRAME_BYTES,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    async with app.running():
        # Not `serve`: that takes over the signals, and looks ten times a second whether it is to end.
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                await client.put(S)
                yield Served(app, server, client, port)
        finally:
            await server.shutdown()


@pytest.fixture(params=["fast path", "plain"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serving(fast=request.param == "fast path") as served:
        yield served


@pytest.fixture
async def broker() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def say(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(json.dumps(frame))


async def hear(socket: ClientConnection) -> Any:
    async with asyncio.timeout(10):
        return json.loads(await socket.recv())


async def ack(socket: ClientConnection, seq: int) -> Any:
    """The ack that says that `seq` is durable; those before it may have been left out."""
    while (told := (await hear(socket))["ack"])["seq"] < seq:
        pass
    assert told["seq"] == seq
    return told


async def closed(socket: ClientConnection) -> int:
    """The code that the broker closes with."""
    with pytest.raises(ConnectionClosed) as caught:
        await asyncio.wait_for(socket.recv(), 10)
    assert caught.value.rcvd is not None
    return int(caught.value.rcvd.code)


async def refused(socket: ClientConnection) -> tuple[str, int]:
    """The code of the error, and that of the close behind it."""
    while "error" not in (told := await hear(socket)):
        pass
    return told["error"]["code"], await closed(socket)


# -- the way it goes -------------------------------------------------------------------------------------------------


async def test_upload_carries_a_whole_generation(served: Served) -> None:
    async with served.upload(query=f"{QUERY}&messageId=m") as socket:
        await say(socket, seq=0, chunks=["a", "b"])
        told = await ack(socket, 0)
        ids = [told[name] for name in ("sessionId", "generationId", "messageId")]
        assert (told["fence"], ids) == (1, ["s", "g", "m"])
        for seq in range(1, 101):
            await say(socket, seq=seq, chunks=[seq])
        await ack(socket, 100)
        await say(socket, seq=101, finish={"status": "complete", "usage": {"tokens": 3}})
        finished = (await hear(socket))["finished"]
        assert (finished["status"], finished["seq"], finished["messageId"]) == ("complete", 101, "m")
        assert await closed(socket) == 1000
    assert await served.chunks() == ["a", "b", *range(1, 101)]
    state = (await served.http.get(G)).json()
    assert (state["status"], state["usage"], state["chunks"]) == ("complete", {"tokens": 3}, 102)
    assert (await served.http.get(S)).json()["offset"] == finished["offset"]


async def test_finish_alone_opens_and_ends_a_generation(broker: Served) -> None:
    async with broker.upload() as socket:
        await say(socket, seq=0, finish={"status": "failed", "reason": "no model"})
        assert (await hear(socket))["finished"]["status"] == "failed"


async def test_copies_after_lost_acks_are_told_so_and_so_is_the_finish(broker: Served) -> None:
    for duplicate in (None, True):
        async with broker.upload() as socket:
            await say(socket, seq=0, chunks=["a"])
            await say(socket, seq=1, chunks=["b"])
            await say(socket, seq=2, finish={})
            while "finished" not in (told := await hear(socket)):
                pass
            assert told["finished"].get("duplicate") is duplicate
    assert await broker.chunks() == ["a", "b"]


async def test_what_was_acked_comes_once_over_both_kinds_of_upload(broker: Served) -> None:
    async with broker.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        first = await ack(socket, 0)
    answer = await broker.http.post(
        f"{G}/chunks?{QUERY}",
        content=b'["a"]\n["b"]\n',
        headers={"content-type": "application/x-ndjson", "producer-seq": "0"},
    )
    assert json.loads(answer.text.splitlines()[-1])["seq"] == 1
    async with broker.upload(query="") as socket:
        await say(socket, seq=1, chunks=["b"])
        assert (await ack(socket, 1))["duplicate"]
    assert first["offset"] < (await broker.http.get(S)).json()["offset"]
    assert await broker.chunks() == ["a", "b"]


async def test_chunks_are_kept_as_they_were_spelled(broker: Served) -> None:
    half = '"\\ud83d"'
    numbers = "[1.0,1e2,100000000000000000000000000001," + "9" * 5000 + "]"
    async with broker.upload() as socket:
        await socket.send(f'{{ "seq":0,"chunks" : [ {half} , {numbers}, {{"b":1,"a":"\\u00e9é"}} ] }}')
        await ack(socket, 0)
    text = (await broker.http.get("/v1/stream/sessions/s")).text
    for spelled in (half, numbers, '{"b":1,"a":"\\u00e9é"}'):
        assert f'"chunk":{spelled}}}' in text


async def test_heartbeats_renew_the_lease_and_the_open_socket_does_not(broker: Served) -> None:
    async with broker.upload(query=f"{QUERY}&leaseMs=1000") as socket:
        await say(socket, heartbeat=True)
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        counts = broker.app.partition.counts

        async def is_renewed() -> bool:
            await say(socket, heartbeat=True)
            return counts.outcomes[Kind.HEARTBEAT, "accepted"] > 0

        await eventually(is_renewed)
        error = (await hear(socket))["error"]
        assert error["reason"] == "LEASE_EXPIRED"


# -- what ends it ----------------------------------------------------------------------------------------------------


async def test_stop_says_who_asked_for_it_and_why(served: Served) -> None:
    async with served.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        await served.http.post(f"{G}/stop", json={"requestedBy": "user-1", "reason": "enough"})
        assert await hear(socket) == {"stop": {"requestedBy": "user-1", "reason": "enough"}}
        assert await refused(socket) == ("FENCED", 1008)


async def test_takeover_is_an_error_and_no_stop(broker: Served) -> None:
    async with broker.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        await broker.http.post(f"{S}/generations/h/chunks?{QUERY}", json="b", headers={"producer-seq": "0"})
        error = (await hear(socket))["error"]
        assert (error["code"], error["reason"]) == ("FENCED", "superseded")
        assert await closed(socket) == 1008


BAD_FRAMES: tuple[tuple[str | bytes, str, int], ...] = (
    ('{"seq":1,"chunks":[1]', "INVALID_JSON", 1008),
    ("[]", "INVALID_JSON", 1008),
    ("", "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":[1]} x', "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":[NaN]}', "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":[1,]}', "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":[1],}', "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":' + "[" * 200 + "]" * 200 + "}", "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":' + "[" * 5000 + "]" * 5000 + "}", "INVALID_JSON", 1008),
    ('{"seq":1,"chunks":[]}', "EMPTY_ARRAY", 1008),
    ('{"seq":1}', "INVALID_BODY", 1008),
    ('{"seq":1,"chunks":[1],"more":1}', "INVALID_BODY", 1008),
    ('{"seq":1,"seq":2,"chunks":[1]}', "INVALID_BODY", 1008),
    ('{"heartbeat":1}', "INVALID_BODY", 1008),
    ('{"seq":1,"finish":{"status":"streaming"}}', "INVALID_BODY", 1008),
    ('{"seq":1,"finish":[]}', "INVALID_BODY", 1008),
    ('{"seq":"1","chunks":[1]}', "INVALID_PRODUCER", 1008),
    ('{"seq":-1,"chunks":[1]}', "INVALID_PRODUCER", 1008),
    ('{"seq":2,"chunks":[1]}', "SEQ_GAP", 1008),
    ('{"seq":0,"chunks":["other"]}', "PAYLOAD_MISMATCH", 1008),
    ('{"seq":1,"chunks":["' + "x" * BODY_BYTES_MAX + '"]}', "BODY_TOO_LARGE", 1009),
    (b'{"seq":1,"chunks":[1]}', "INVALID_BODY", 1008),
)


async def test_bad_frame_is_refused_and_changes_nothing(broker: Served) -> None:
    for number, (frame, code, close) in enumerate(BAD_FRAMES):
        target = f"{S}/generations/g{number}"
        async with broker.upload(target, f"{QUERY}&lane=l{number}") as socket:
            await say(socket, seq=0, chunks=["a"])
            await socket.send(frame)
            assert await refused(socket) == (code, close), frame
        assert (await broker.http.get(target)).json()["chunks"] == 1, frame
    assert not broker.app.uploads.open


async def test_frame_that_is_much_too_large_is_not_read(broker: Served) -> None:
    async with broker.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        await say(socket, seq=1, chunks=["x" * 2 * BODY_BYTES_MAX])
        assert await closed(socket) == 1009
    assert await broker.chunks() == ["a"]


@pytest.mark.parametrize(
    ("target", "query", "status", "code"),
    [
        (G, "wrong=1", 400, "INVALID_PARAMETER"),
        (f"{S}/generations/%20", "", 400, "INVALID_PATH"),
        (f"{S}/nothing/g", "", 404, "NOT_FOUND"),
    ],
)
async def test_refused_handshake_is_answered_with_a_problem(
    broker: Served, target: str, query: str, status: int, code: str
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with broker.upload(target, query):
            pass
    response = caught.value.response
    assert (response.status_code, json.loads(response.body or b"")["code"]) == (status, code)
    assert "x-request-id" in response.headers


async def test_unknown_session_is_told_on_the_first_batch(broker: Served) -> None:
    async with broker.upload("/v1/sessions/none/generations/g") as socket:
        await say(socket, seq=0, chunks=["a"])
        assert await refused(socket) == ("SESSION_NOT_FOUND", 1008)


async def test_get_without_an_upgrade_is_told_to_upgrade(broker: Served) -> None:
    answer = await broker.http.get(f"{G}/upload")
    assert (answer.status_code, answer.json()["code"], answer.headers["upgrade"]) == (
        426,
        "UPGRADE_REQUIRED",
        "websocket",
    )


async def test_socket_elsewhere_is_refused(broker: Served) -> None:
    with pytest.raises(InvalidStatus):
        async with connect(f"ws://127.0.0.1:{broker.port}/v1/stream/sessions/s"):
            pass


async def test_client_that_leaves_keeps_what_was_sent_whole(broker: Served) -> None:
    async with broker.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        socket.transport.abort()

        async def is_gone() -> bool:
            return not broker.app.uploads.open

        await eventually(is_gone)
    assert await broker.chunks() == ["a"]


async def test_drain_tells_the_last_ack_and_that_the_broker_leaves(broker: Served) -> None:
    async with broker.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        broker.app.drain()
        draining = asyncio.create_task(broker.app.uploads.drain(5))
        assert await refused(socket) == ("UNAVAILABLE", 1012)
        await draining
    with pytest.raises(InvalidStatus) as caught:
        async with broker.upload():
            pass
    assert caught.value.response.status_code == 503


async def test_client_that_reads_nothing_gets_its_acks_in_the_end(broker: Served) -> None:
    async with broker.upload() as socket:
        for seq in range(3000):
            await say(socket, seq=seq, chunks=["x" * 10])
        await ack(socket, 2999)
    assert len(await broker.chunks()) == 3000


async def test_finish_behind_a_lost_batch_is_refused_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(waiter: Any, _entry: Entry, **_: object) -> None:
        asyncio.get_running_loop().call_soon(waiter.set_exception, Unavailable("the disk is full"))

    async with serving(async_acks=True) as served, served.upload() as socket:
        await say(socket, seq=0, chunks=["a"])
        await ack(socket, 0)
        with monkeypatch.context() as patch:
            patch.setattr(served.app.partition, "propose_for", refuse)
            headers = {"producer-seq": "1", "prefer": "respond-async"}
            assert (await served.http.post(f"{G}/chunks", json="b", headers=headers)).status_code == 202
        await say(socket, seq=2, finish={})
        assert await refused(socket) == ("LOST_CHUNKS", 1008)
        assert (await served.http.get(G)).json()["status"] == "failed"


# -- frames ----------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values, values, st.sampled_from([None, 1]))
def test_members_are_cut_where_they_stand(first: object, second: object, indent: int | None) -> None:
    told = {"chunks": first, "finish": second}
    for ascii_only in (True, False):
        text = json.dumps(told, indent=indent, ensure_ascii=ascii_only)
        assert {name: json.loads(raw) for name, raw in members(text).items()} == told


@given(st.text(alphabet='{}[]",:\\ascehunk01 \n', max_size=40))
def test_text_that_is_no_object_of_named_members_is_refused(text: str) -> None:
    try:
        cut = members(text)
    except BadRequest:
        return
    try:
        told = decode(text.encode())
    except NotJSON:
        pytest.fail(f"{text!r} was taken")
    assert isinstance(told, dict)
    assert told.keys() == cut.keys()
