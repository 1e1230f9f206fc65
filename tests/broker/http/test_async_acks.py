"""202: told before it is durable, and a finish that tells what became of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker import Settings, create_app, limits
from broker.core.entry import Entry
from broker.errors import EngineStopped, Overloaded, Unavailable
from broker.http.async_acks import AsyncAcks
from broker.partition import Partition
from consumer.wire import Code
from tests.broker.http.asgi import Answer, Client, broker

S = "/v1/sessions/s"
G = f"{S}/generations/g"
ASYNC = {"prefer": "respond-async"}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker(async_acks=True) as client:
        await client.put(S)
        yield client


async def chunk(client: Client, seq: int, target: str = G, **headers: str) -> Answer:
    query = f"format=text&lane={target[-1]}" if seq == 0 else ""
    return await client.post(f"{target}/chunks?{query}", b'"%d"' % seq, producer_seq=str(seq), **headers)


async def chunks_at_once(client: Client, *seqs: int) -> list[Answer]:
    """All on their way before the first is durable."""
    return await asyncio.gather(*(chunk(client, seq, **ASYNC) for seq in seqs))


async def finish(client: Client, seq: int, body: bytes = b"") -> Answer:
    return await client.post(f"{G}/finish", body, producer_seq=str(seq))


async def state(client: Client) -> Any:
    return (await client.get(G)).json


def losing(client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """From here on, what is proposed fails after a while."""
    call_soon = asyncio.get_running_loop().call_soon

    def propose_for(waiter: Any, _entry: Entry, *, looks_ahead: bool) -> None:  # noqa: ARG001 -- as the real one
        call_soon(waiter.set_exception, error)

    monkeypatch.setattr(client.app.partition, "propose_for", propose_for)


# -- the way it goes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["respond-async", "Respond-Async; wait=5, handling=lenient", "x, respond-async"])
async def test_batch_is_answered_with_202_and_is_there_soon(client: Client, prefer: str) -> None:
    answer = await chunk(client, 0, prefer=prefer)
    told = {"sessionId": "s", "generationId": "g", "messageId": "g", "seq": 0}
    assert (answer.status, answer.json) == (202, told)
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["stream-durability"] == "accepted"
    assert (await finish(client, 1)).json["status"] == "complete"
    assert (await state(client))["chunks"] == 1


@pytest.mark.parametrize("headers", [{}, {"prefer": "return=minimal"}, {"prefer": "respond-asynchronously"}])
async def test_who_does_not_ask_for_it_gets_a_durable_answer(client: Client, headers: dict[str, str]) -> None:
    answer = await chunk(client, 0, **headers)
    assert (answer.status, answer.headers["stream-durability"]) == (200, "memory")
    assert "preference-applied" not in answer.headers


async def test_without_the_operators_leave_every_answer_is_durable() -> None:
    async with broker() as client:
        await client.put(S)
        answer = await chunk(client, 0, **ASYNC)
        assert (answer.status, answer.headers["stream-durability"]) == (200, "memory")


async def test_synchronous_commits_leave_no_202(client: Client) -> None:
    client.app.partition.synchronous = True
    assert (await chunk(client, 0, **ASYNC)).status == 200


async def test_what_is_certain_already_is_said_instead_of_202(client: Client) -> None:
    await chunk(client, 0)
    copy = await chunk(client, 0, **ASYNC)
    gap = await chunk(client, 5, **ASYNC)
    assert (copy.status, copy.json["duplicate"]) == (200, True)
    assert (gap.status, gap.code, gap.json["expectedSeq"]) == (409, Code.SEQ_GAP, 1)
    assert (await chunk(client, 1, **ASYNC)).status == 202, "an error that was told is no loss"


async def test_finish_waits_for_what_was_accepted_before_it(client: Client) -> None:
    await chunk(client, 0)
    told = await asyncio.gather(*(chunk(client, seq, **ASYNC) for seq in range(1, 20)), finish(client, 20))
    assert [answer.status for answer in told] == [202] * 19 + [200]
    assert ((await state(client))["status"], (await state(client))["chunks"]) == ("complete", 20)


async def test_full_or_stopped_broker_says_so_and_not_202(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_room(_entry: Entry) -> None:
        raise Overloaded("no room")

    with monkeypatch.context() as patch:
        patch.setattr(client.app.partition, "has_room", lambda _entry: False)
        patch.setattr(client.app.partition, "wait_for_room", no_room)
        assert (await chunk(client, 0, **ASYNC)).status == 503

    with monkeypatch.context() as patch:
        patch.setattr(client.app.partition, "failure", EngineStopped("it has"))
        assert (await chunk(client, 0, **ASYNC)).status == 503
    assert (await chunk(client, 0, **ASYNC)).status == 202


# -- losses ----------------------------------------------------------------------------------------------------------


async def test_finish_fails_with_what_was_lost_and_readers_see_that_it_failed(client: Client) -> None:
    await chunk(client, 0)
    assert [answer.status for answer in await chunks_at_once(client, 1, 3, 4)] == [202] * 3
    lost = await finish(client, 5, b'{"status":"complete"}')
    assert (lost.status, lost.code, lost.json["firstSeq"], lost.json["lastSeq"]) == (409, Code.LOST_CHUNKS, 2, 4)
    assert lost.headers["producer-expected-seq"] == lost.headers["producer-received-seq"] == "5"
    now = await state(client)
    assert (now["status"], now["reason"], now["chunks"]) == ("failed", "LOST_CHUNKS", 2)
    assert now["error"] == {"code": "LOST_CHUNKS", "firstSeq": 2, "lastSeq": 4}
    record = (await client.get("/v1/stream/sessions/s")).json[-1]
    assert (record["type"], record["value"]["status"], record["value"]["error"]) == (
        "generation",
        "failed",
        now["error"],
    )
    again = await finish(client, 5)
    assert (again.status, again.code, again.json["reason"]) == (403, Code.FENCED, "LOST_CHUNKS")


async def test_finish_without_a_number_fails_with_what_was_lost_all_the_same(client: Client) -> None:
    await chunk(client, 0)
    await chunks_at_once(client, 1, 3, 4)
    lost = await client.post(f"{S}/generations/finish", b'{"generationId":"g"}')
    assert (lost.status, lost.code, lost.json["firstSeq"], lost.json["lastSeq"]) == (409, Code.LOST_CHUNKS, 2, 4)
    assert (await state(client))["status"] == "failed"


async def test_after_a_loss_there_is_no_further_202(client: Client) -> None:
    await chunk(client, 0)
    await chunks_at_once(client, 1, 3)
    behind = await chunk(client, 4, **ASYNC)
    assert (behind.status, behind.code, behind.json["expectedSeq"]) == (409, Code.SEQ_GAP, 2)
    assert (await chunk(client, 0, f"{S}/generations/h", **ASYNC)).status == 202, "others are not concerned"


async def test_what_was_lost_and_sent_again_is_not_lost(client: Client) -> None:
    await chunk(client, 0)
    await chunks_at_once(client, 1, 3)
    for seq in (2, 3):
        assert (await chunk(client, seq, **ASYNC)).status == 200
    assert (await finish(client, 4)).json["status"] == "complete"


async def test_batch_that_could_not_be_written_is_lost(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await chunk(client, 0)
    with monkeypatch.context() as patch:
        losing(client, patch, Unavailable("the disk is full"))
        assert (await chunk(client, 1, **ASYNC)).status == 202
    lost = await finish(client, 2)
    assert (lost.code, lost.json["firstSeq"], lost.json["lastSeq"]) == (Code.LOST_CHUNKS, 1, 1)
    assert (await state(client))["status"] == "failed"


async def test_lost_first_batch_leaves_no_generation_and_a_finish_that_fails(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        losing(client, patch, Unavailable("the disk is full"))
        assert (await chunk(client, 0, **ASYNC)).status == 202
    lost = await finish(client, 1)
    assert (lost.code, lost.json["firstSeq"], lost.json["lastSeq"]) == (Code.LOST_CHUNKS, 0, 0)
    assert (await client.get(G)).status == 404


async def test_other_content_under_an_accepted_seq_is_lost_though_there_is_no_gap(client: Client) -> None:
    await chunk(client, 0)
    first = chunk(client, 1, **ASYNC)
    other = client.post(f"{G}/chunks", b'"other"', producer_seq="1", **ASYNC)
    assert [answer.status for answer in await asyncio.gather(first, other)] == [202, 202]
    lost = await finish(client, 2)
    assert (lost.code, lost.json["firstSeq"], lost.json["lastSeq"]) == (Code.LOST_CHUNKS, 1, 1)
    assert (await state(client))["status"] == "failed"


async def test_takeover_behind_a_202_is_told_as_the_takeover_that_it_is(client: Client) -> None:
    await chunk(client, 0)
    taking = client.post(f"{S}/generations/h/chunks?format=text&lane=g", b'"x"', producer_seq="0")
    told = await asyncio.gather(taking, chunk(client, 1, **ASYNC))
    assert [answer.status for answer in told] == [200, 202]
    ended = await finish(client, 2)
    assert (ended.code, ended.json["reason"], ended.json["generationStatus"]) == ("FENCED", "superseded", "aborted")


async def test_failed_finish_of_a_producer_that_knows_of_a_gap_is_its_own(client: Client) -> None:
    await chunk(client, 0)
    await chunks_at_once(client, 1, 3)
    assert (await finish(client, 2, b'{"status":"failed","reason":"mine"}')).status == 200
    assert ((await state(client))["status"], (await state(client))["reason"]) == ("failed", "mine")


async def test_losses_are_bounded_and_a_forgotten_one_is_a_gap(client: Client) -> None:
    acks = AsyncAcks(client.app.partition, is_allowed=True, losses_max=2)
    for n in range(5):
        key = ("sessions/s", f"g{n}")
        acks._in_flight[key] += 1  # noqa: SLF001 -- as `accept` does
        acks.settled(key, Entry(19, "sessions/s", seq=3), Code.SEQ_GAP, 2)
    assert list(acks._losses) == [("sessions/s", "g3"), ("sessions/s", "g4")]  # noqa: SLF001 -- its bound is the point
    assert acks.lost == 5


async def test_finish_does_not_wait_for_ever(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FINISH_S", 0.05)
    held: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(client.app.partition, "propose_for", lambda waiter, _entry, **_: held.append(waiter))
        assert (await chunk(client, 0, **ASYNC)).status == 202
    waited = await finish(client, 1)
    assert (waited.status, waited.code) == (503, Code.UNAVAILABLE)
    held[0].set_exception(Unavailable("at last"))
    assert (await finish(client, 1)).code == Code.LOST_CHUNKS


async def test_crash_behind_a_202_leaves_a_gap_that_no_finish_gets_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 9 gets its 202, the broker crashes before it is written, and knows nothing of that when it comes back."""
    settings = Settings(data_dir=tmp_path, async_acks=True)
    app = create_app(settings)
    async with app.running():
        client = Client(app)
        await client.put(S)
        for seq in range(9):
            assert (await chunk(client, seq)).status == 200
        assert isinstance(app.partition, Partition)
        with monkeypatch.context() as patch:
            patch.setattr(app.partition._journal, "propose", lambda _entry: None)  # noqa: SLF001 -- what a crash takes
            assert (await chunk(client, 9, **ASYNC)).status == 202
    app = create_app(settings)
    async with app.running():
        client = Client(app)
        refused = await finish(client, 10)
        assert (refused.status, refused.code, refused.json["expectedSeq"]) == (409, Code.SEQ_GAP, 9)
        assert (await state(client))["status"] == "streaming"
        assert (await chunk(client, 10, **ASYNC)).code == Code.SEQ_GAP
        assert (await finish(client, 9, b'{"status":"failed","error":{"firstSeq":9}}')).status == 200
        assert ((await state(client))["status"], (await state(client))["chunks"]) == ("failed", 9)


async def test_metrics_tell_of_202s_and_of_losses(client: Client) -> None:
    await chunk(client, 0)
    await chunks_at_once(client, 1, 3)
    await finish(client, 4)
    said = (await client.get("/metrics")).body.decode()
    assert "streamfold_async_batches_total 2.0" in said
    assert "streamfold_async_batches_lost_total 1.0" in said
