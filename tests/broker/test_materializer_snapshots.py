"""broker/materializer.py: the snapshots that ride in checkpoints, and what is read and folded where they are."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from broker import Settings, create_app, limits
from broker.errors import Unavailable
from broker.folded import SNAPSHOT_BYTES_PER_RECORD, SNAPSHOT_RECORDS, Due
from broker.materializer import Materializer
from broker.store import Snapshot
from tests.broker.core.entries import SESSION, chunks, create_session, finish, message
from tests.broker.held import HeldStore
from tests.broker.materialized import (
    ANSWER,
    OTHER,
    CountingStore,
    do,
    following,
    listed,
    log_of,
    require_fold,
    text,
    told,
)
from tests.eventually import until


async def snapshot_positions(store: HeldStore) -> list[int]:
    return [snapshot.position for checkpoint in store.written for snapshot in checkpoint.snapshots]


async def test_restart_goes_on_from_the_snapshot(tmp_path: Path) -> None:
    """`GET /messages` costs O(messages), not O(chunks)."""
    app = create_app(Settings(data_dir=tmp_path / "data"))
    async with app.running():
        await do(app.partition, create_session(), chunks("g", 0, *[b'"x"'] * 5000))
        await do(app.partition, finish("g", 1))
        before = await told(app.materializer)
    again = create_app(Settings(data_dir=tmp_path / "data"))
    async with again.running():
        after = await told(again.materializer)
        assert (after.position, listed(after)) == (before.position, listed(before))
        assert again.materializer.records_folded == 0
        await do(again.partition, message("m"))
        await require_fold(again.partition, again.materializer)
        assert again.materializer.records_folded == 1


async def bytes_read_to_open(chunk_count: int, text_bytes: int) -> tuple[int, int]:
    """By a broker that has nothing of the session in memory: bytes of the log, and of its snapshot."""
    store = CountingStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        for seq in range(10):
            await do(partition, chunks("g", seq, *[text(text_bytes // chunk_count)] * (chunk_count // 10)))
        await do(partition, finish("g", 10))
        await told(materializer)
        await partition.checkpoint()
        store.page_bytes = store.snapshot_bytes = 0
        items = listed(await told(Materializer(partition)))
        assert len(msgspec.json.encode(items)) > text_bytes
        return store.page_bytes, store.snapshot_bytes


async def test_opening_a_session_reads_its_messages_and_none_of_its_chunks() -> None:
    """`GET /messages` costs O(messages), not O(chunks). The same text in 20 chunks and in 20,000."""
    few, many = await bytes_read_to_open(20, 100_000), await bytes_read_to_open(20_000, 100_000)
    assert few[0] == many[0] == 0
    assert abs(few[1] - many[1]) < 100


async def test_snapshot_of_a_running_answer_goes_on_where_it_stood() -> None:
    async with following() as (partition, materializer):
        await do(partition, create_session(), chunks("g", 0, *[b'"x"'] * SNAPSHOT_RECORDS))
        await told(materializer)
        await partition.checkpoint()
        await do(partition, chunks("g", 1, b'"y"'))
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == 1
        await do(partition, finish("g", 2))
        await require_fold(partition, restarted)


async def test_answer_too_short_for_a_snapshot_waits_for_its_end() -> None:
    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session(), chunks("g", 0, b'"x"'))
        await told(materializer)
        await partition.checkpoint()
        assert await snapshot_positions(store) == []
        await do(partition, finish("g", 1))
        await told(materializer)
        await partition.checkpoint()
        assert await snapshot_positions(store) == [3]


async def test_snapshot_carries_only_what_changed() -> None:
    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        for number in range(5):
            await do(partition, message(f"m{number}"))
            await told(materializer)
            await partition.checkpoint()
        changed = [[mid for _, mid, _ in s.messages] for checkpoint in store.written for s in checkpoint.snapshots]
        assert changed == [["m0"], ["m1"], ["m2"], ["m3"], ["m4"]]
        await partition.checkpoint()
        assert len(await snapshot_positions(store)) == 5


@pytest.mark.parametrize("chunk_bytes", [20, 200])
async def test_writing_snapshots_stays_linear_in_the_length_of_an_answer(chunk_bytes: int) -> None:
    """A snapshot every so many records, or every second, would be quadratic."""
    batches, batch = 240, [text(chunk_bytes)] * 100
    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        for seq in range(batches):
            await do(partition, chunks("g", seq, *batch))
            await told(materializer)
            await partition.checkpoint()
    written = [len(data) for c in store.written for s in c.snapshots for _, _, data in s.messages]
    assert len(written) > 1
    answer_bytes = batches * len(batch) * chunk_bytes
    assert sum(written) <= (4 + SNAPSHOT_BYTES_PER_RECORD / chunk_bytes) * answer_bytes


SPAN = bytes(16)


@pytest.mark.parametrize(
    "stored",
    [b"", SPAN, SPAN + b"\xff", SPAN + b"{}", SPAN + b"[1]", SPAN + b'{"version":9,"facts":{},"chunks":0,"fold":null}'],
)
async def test_snapshot_that_cannot_be_read_is_folded_anew(stored: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with following() as (partition, materializer):
        await do(partition, *ANSWER)
        await told(materializer)
        damaged = [msgspec.structs.replace(s, messages=[(0, "m", stored)]) for s in await materializer.snapshots()]

        async def take() -> list[Snapshot]:
            return [damaged.pop()] if damaged else []

        partition.snapshots = take
        await partition.checkpoint()
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == len(await log_of(partition))
        assert f"snapshot of {SESSION} is folded anew" in caplog.text
        await partition.checkpoint()
        again = Materializer(partition)
        await require_fold(partition, again)
        assert again.records_folded == 0


async def test_checkpoint_that_fails_keeps_what_it_owed() -> None:
    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, *ANSWER[:2], finish("g", 1))
        await told(materializer)
        store.write_errors.append(Unavailable("disk full"))
        with pytest.raises(Unavailable):
            await partition.checkpoint()
        assert await materializer.snapshots() == []
        await do(partition, message("m2"))
        await told(materializer)
        await partition.checkpoint()
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == 0


async def test_snapshot_in_hand_while_its_session_is_forgotten_loses_nothing() -> None:
    store = HeldStore()
    async with following(store, sessions_max=1) as (partition, materializer):
        await do(partition, *ANSWER, create_session(path=OTHER))
        await told(materializer)
        store.write_gate.shut()
        checkpoint = asyncio.create_task(partition.checkpoint())
        await store.write_gate.reached.wait()
        await do(partition, message("m2"))
        await told(materializer, OTHER)
        await require_fold(partition, materializer)
        store.write_gate.open()
        await checkpoint
        await partition.checkpoint()
        await require_fold(partition, Materializer(partition))


async def test_snapshots_that_cannot_be_made_do_not_hold_up_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with following() as (partition, materializer):
        await do(partition, *ANSWER)
        await told(materializer)

        def fail(_self: Due) -> None:
            raise RecursionError

        with monkeypatch.context() as patch:
            patch.setattr(Due, "encode", fail)
            await partition.checkpoint()
        assert partition.counts.checkpoints == 1
        assert "snapshots are made later" in caplog.text
        await partition.checkpoint()
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == 0


async def test_checkpoint_that_nobody_waits_for_any_more_loses_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_go_on, encode = threading.Event(), threading.Event(), Due.encode

    def wait(self: Due) -> None:
        begun.set()
        may_go_on.wait()
        encode(self)

    async with following() as (partition, materializer):
        await do(partition, *ANSWER)
        await told(materializer)
        with monkeypatch.context() as patch:
            patch.setattr(Due, "encode", wait)
            checkpoint = asyncio.create_task(partition.checkpoint())
            await until(begun.is_set)
            checkpoint.cancel()
            with suppress(asyncio.CancelledError):
                await checkpoint
            may_go_on.set()
        await partition.checkpoint()
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == 0


async def test_session_is_folded_on_while_its_snapshot_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored then is the state before, whole."""
    begun, may_go_on, encode = threading.Event(), threading.Event(), Due.encode

    def wait(self: Due) -> None:
        begun.set()
        may_go_on.wait()
        encode(self)

    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session(), chunks("g", 0, *[b'"x"'] * SNAPSHOT_RECORDS))
        await told(materializer)
        monkeypatch.setattr(Due, "encode", wait)
        checkpoint = asyncio.create_task(partition.checkpoint())
        await until(begun.is_set)
        await do(partition, chunks("g", 1, b'"y"'), message("m"), finish("g", 2))
        await require_fold(partition, materializer)
        may_go_on.set()
        await checkpoint
        assert await snapshot_positions(store) == [SNAPSHOT_RECORDS + 1]
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == 3


async def test_more_snapshots_than_one_checkpoint_takes_ride_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_STEP_BYTES", 1_000)
    monkeypatch.setattr(limits, "SNAPSHOT_ROUND_BYTES", 10_000)
    store = HeldStore()
    async with following(store) as (partition, materializer):
        paths = [f"sessions/{number}" for number in range(5)]
        for path in paths:
            await do(partition, create_session("m", b'{"id":"m","role":"user","text":%b}' % text(3_000), path=path))
            await told(materializer, path)
        for _ in range(4):
            await partition.checkpoint()
        assert [len(checkpoint.snapshots) for checkpoint in store.written] == [2, 2, 1]
