"""broker/materializer.py: what it keeps in memory, what it lets go, and what it takes to have that back."""

from __future__ import annotations

import asyncio
import gc

import pytest

from broker import folded as folded_session
from broker.materializer import Materializer
from broker.partition import Partition
from broker.partitions import Partitioned
from consumer.plain import encode
from tests.broker.core.entries import SESSION, chunks, create_session, delete_session, finish, message, stop
from tests.broker.materialized import (
    OTHER,
    CountingStore,
    do,
    folded,
    following,
    listed,
    require_fold,
    running,
    text,
    told,
)
from tests.eventually import until


async def test_least_recently_used_session_is_forgotten_and_folded_again() -> None:
    async with following(sessions_max=2) as (partition, materializer):
        paths = [f"sessions/{number}" for number in range(3)]
        for path in paths:
            await do(partition, create_session(path=path), message("m", path=path))
        for path in (*paths[:2], paths[0], paths[2]):
            await told(materializer, path)
        assert (materializer.sessions, materializer.records_folded) == (2, 3)
        await told(materializer, paths[0])
        assert materializer.records_folded == 3
        await require_fold(partition, materializer, paths[1])
        assert materializer.records_folded == 4


async def test_sessions_that_take_too_much_together_are_forgotten_the_one_in_use_last() -> None:
    async with following(bytes_max=50_000) as (partition, materializer):
        paths = [f"sessions/{number}" for number in range(4)]
        for path in paths:
            await do(
                partition, create_session(path=path), chunks("g", 0, text(20_000), path=path), finish("g", 1, path=path)
            )
            await told(materializer, path)
        assert materializer.sessions == 2
        assert 40_000 < materializer.size_bytes < 50_000
        await do(partition, chunks("h", 0, text(60_000), path=paths[0]))
        await require_fold(partition, materializer, paths[0])
        assert (materializer.sessions, materializer.size_bytes > 80_000) == (1, True)
        await require_fold(partition, materializer, paths[1])
        assert (materializer.sessions, materializer.size_bytes < 50_000) == (1, True)
        await do(partition, delete_session(path=paths[1]))
        assert await materializer.messages(paths[1]) is None
        await require_fold(partition, materializer, paths[2])


async def test_size_of_an_answer_is_known_when_it_was_stored() -> None:
    """Its records say ten times as much as they fold to."""
    async with following() as (partition, materializer):
        await do(partition, create_session(), chunks("g", 0, *[b'"x"'] * 2000), finish("g", 1))
        await told(materializer)
        before = materializer.size_bytes
        await partition.checkpoint()
        assert materializer.size_bytes < before / 10


async def test_messages_that_have_ended_are_encoded_once_and_their_texts_counted() -> None:
    async with following() as (partition, materializer):
        await do(partition, create_session(), chunks("cut", 0, text(5_000)), stop("cut"), chunks("g", 0, text(5_000)))
        first, before = listed(await told(materializer)), materializer.size_bytes
        again = await told(materializer)
        assert listed(again) == first
        assert 5_000 < materializer.size_bytes - before < 6_000
        assert [item.text for item in (await told(materializer)).items] == [again.folded.text(again.items[0]), None]
        await do(partition, chunks("on", 0, b'"b"', message_id="cut", continues="cut"))
        await require_fold(partition, materializer)
        assert materializer.size_bytes < before + 1_000


async def test_messages_told_stay_as_they_were_while_the_session_is_folded_on() -> None:
    async with following() as (partition, materializer):
        await do(partition, create_session(), chunks("cut", 0, b'"a"'), stop("cut"), chunks("g", 0, b'"a"'))
        before = await told(materializer)
        await do(partition, chunks("on", 0, b'"b"', message_id="cut", continues="cut"), chunks("g", 1, b'"b"'))
        await require_fold(partition, materializer)
        await do(partition, finish("on", 1))
        size_bytes = (await told(materializer)).folded.size_bytes
        assert [b'"ab"' in before.folded.text(item) for item in before.items] == [False, False]
        assert [item["status"] for item in listed(before)] == ["aborted", "streaming"]
        assert before.folded.size_bytes == size_bytes
        await require_fold(partition, materializer)


async def answers(partition: Partitioned, first: int, end: int) -> None:
    """So many short answers, a checkpoint now and then."""
    for number in range(first, end):
        await do(partition, chunks(f"g{number}", 0, b'"x"'), finish(f"g{number}", 1))
        if number % 20 == 19:
            await until(lambda: partition.in_flight == 0)
            await partition.checkpoint()


async def let_go(partition: Partition, materializer: Materializer) -> None:
    """Write ninety-nine answers into the session: most of them are in the store only then."""
    await materializer.follow(SESSION)
    await answers(partition, 0, 99)
    await materializer.follow(SESSION)
    await partition.checkpoint()


async def test_r44_of_a_session_that_is_only_written_memory_holds_what_is_new() -> None:
    async with following() as (partition, materializer):
        await do(partition, create_session())
        sizes = []
        for number in range(0, 200, 20):
            await answers(partition, number, number + 19)
            await materializer.follow(SESSION)
            await answers(partition, number + 19, number + 20)
            sizes.append(materializer.size_bytes)
        assert max(sizes) < 40 * folded_session.MESSAGE_BYTES
        assert messages_in_memory() < 40
        await require_fold(partition, materializer)
        assert materializer.size_bytes > 200 * folded_session.MESSAGE_BYTES
        assert messages_in_memory() >= 200


def messages_in_memory() -> int:
    """Those that a broker's sessions hold, by what the interpreter knows."""
    gc.collect()
    return sum(type(found) is folded_session.Span for found in gc.get_objects())


async def test_session_whose_messages_were_asked_for_stays_whole_for_a_while() -> None:
    store = CountingStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        await told(materializer)
        await answers(partition, 0, 100)
        await require_fold(partition, materializer)
        assert store.snapshot_bytes == 0


async def test_what_was_let_go_is_read_once_for_all_who_ask() -> None:
    store = CountingStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        await let_go(partition, materializer)
        await asyncio.gather(*(told(materializer) for _ in range(5)))
        once = store.snapshot_bytes
        await require_fold(partition, materializer)
        assert 0 < once == store.snapshot_bytes


async def test_answer_that_was_let_go_is_gone_on_with() -> None:
    async with following() as (partition, materializer):
        await do(partition, create_session(), chunks("cut", 0, b'"a"'), stop("cut"))
        await let_go(partition, materializer)
        assert materializer.size_bytes < 40 * folded_session.MESSAGE_BYTES
        await do(partition, chunks("on", 0, b'"b"', message_id="cut", continues="cut"))
        await materializer.follow(SESSION)
        await require_fold(partition, materializer)
        assert b'"ab"' in encode((await told(materializer)).items[0].facts)


async def test_what_was_let_go_and_cannot_be_read_is_folded_anew(caplog: pytest.LogCaptureFixture) -> None:
    store = CountingStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        await let_go(partition, materializer)
        store.is_lost = True
        await require_fold(partition, materializer)
        assert "folded anew" in caplog.text


async def test_more_moving_sessions_than_memory_holds_are_not_folded_again_and_again() -> None:
    async with following(sessions_max=2) as (partition, materializer), running(materializer):
        paths = [f"sessions/{number}" for number in range(6)]
        for path in paths:
            await do(partition, create_session(path=path), chunks("g", 0, *[b'"x"'] * 100, path=path))
        for seq in range(1, 6):
            for path in paths:
                await do(partition, chunks("g", seq, b'"y"', path=path))
            await folded(materializer, 2 * (101 + seq))  # the two that came first, each record once
        for path in paths:
            await require_fold(partition, materializer, path)


async def test_session_that_rests_makes_room_for_one_that_moves() -> None:
    async with following(sessions_max=1) as (partition, materializer), running(materializer):
        await do(partition, create_session(), message("m"))
        await until(lambda: materializer.records_folded == 1)
        await partition.checkpoint()
        await do(partition, create_session(path=OTHER), message("m", path=OTHER))
        await until(lambda: materializer.records_folded == 2)
        assert materializer.sessions == 1
