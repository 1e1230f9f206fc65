"""broker/materializer.py: what it answers is the fold of the log, and what it forgets it can fold again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from broker import Settings, create_app, limits, materializer
from broker.core.entry import Entry
from broker.core.page import records
from broker.errors import Unavailable
from broker.materializer import SNAPSHOT_BYTES_PER_RECORD, SNAPSHOT_RECORDS, Materializer, Messages
from broker.partition import Partition
from consumer.session import SessionFold
from tests.broker.core.entries import (
    SESSION,
    append,
    chunks,
    create,
    create_session,
    delete_session,
    finish,
    fork_ref,
    message,
    stop,
)
from tests.broker.test_partition import HeldJournal, HeldStore, opened, until

OTHER = "sessions/other"


@asynccontextmanager
async def following(
    store: HeldStore | None = None, sessions_max: int = 100
) -> AsyncIterator[tuple[Partition, Materializer]]:
    """A partition, and a materializer that answers but does not run."""
    async with opened(HeldJournal(), store) as partition:
        yield partition, Materializer(partition, sessions_max)


@asynccontextmanager
async def running(materializer: Materializer) -> AsyncIterator[None]:
    task = asyncio.create_task(materializer.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def do(partition: Partition, *entries: Entry) -> None:
    for entry in entries:
        outcome = await partition.propose(entry)
        assert outcome.changed, outcome


async def told(materializer: Materializer, path: str = SESSION) -> Messages:
    messages = await materializer.messages(path)
    assert messages is not None
    return messages


async def folded(materializer: Materializer, count: int) -> None:
    """Wait until so many records are folded, and no more."""
    await until(lambda: materializer.records_folded >= count)
    assert materializer.records_folded == count


async def log_of(partition: Partition, path: str = SESSION) -> list[bytes]:
    """Every record of a session."""
    found: list[bytes] = []
    while True:
        stream = await partition.stream(path)
        assert stream is not None
        page = await partition.read(path, stream, len(found), limits.READ_BYTES_MAX)
        if page is None:
            return found
        found += records(page)


async def require_fold(partition: Partition, materializer: Materializer, path: str = SESSION) -> None:
    """snapshot(X) = fold(log[0..X]), and X is all that was applied."""
    messages, log = await told(materializer, path), await log_of(partition, path)
    fold = SessionFold()
    for record in log:
        fold.add(record)
    assert (messages.position, messages.items) == (len(log), fold.items())
    assert fold.malformed == 0


def text(length: int) -> bytes:
    return msgspec.json.encode("x" * length)


ANSWER = (
    create_session("m", b'{"id":"m","role":"user"}'),
    chunks("g", 0, b'"a"', b'"b"'),
    message("late", b'{"id":"late","role":"user"}'),
    chunks("g", 1, b'"c"', b'"\\ud83d"', b"1"),
    chunks("g2", 0, b'"new"', lane="side"),
    chunks("g3", 0, b'"supersedes"'),
    finish("g2", 1, usage=b'{"n":1}'),
    stop("g3", requested_by="me"),
)


# -- the fold of the log ---------------------------------------------------------------------------------------------


async def test_messages_are_the_fold_of_the_log_at_every_prefix() -> None:
    async with following() as (partition, materializer):
        for number, entry in enumerate(ANSWER):
            await do(partition, entry)
            await require_fold(partition, materializer)
            if number % 3 == 2:
                await partition.checkpoint()
        assert [item["status"] for item in (await told(materializer)).items] == [
            "complete",
            "aborted",
            "complete",
            "complete",
            "aborted",
        ]


STEPS = st.lists(
    st.sampled_from(("chunks", "side", "message", "finish", "stop", "checkpoint", "forget", "ask")), max_size=30
)


@settings(max_examples=40)
@given(STEPS)
def test_messages_are_the_fold_whatever_was_stored_and_forgotten_between(steps: list[str]) -> None:
    async def run() -> None:
        async with following() as (partition, first):
            newest = first
            await do(partition, create_session())
            seqs: dict[str, int] = {}
            generation = 0
            for number, step in enumerate(steps):
                name = f"{'side' if step == 'side' else 'main'}-{generation}"
                if step in {"chunks", "side"}:
                    seq = seqs.get(name, 0)
                    entry = chunks(name, seq, b'"%d"' % number, lane=name.partition("-")[0])
                    seqs[name] = seq + 1
                    await do(partition, entry)
                elif step == "message":
                    await do(partition, message(f"m{number}", b'{"id":"m%d","role":"user"}' % number))
                elif step in {"finish", "stop"} and name in seqs:
                    await do(partition, stop(name) if step == "stop" else finish(name, seqs[name]))
                    generation += 1
                elif step == "checkpoint":
                    await partition.checkpoint()
                elif step == "forget":
                    newest = Materializer(partition)
                elif step == "ask":
                    await require_fold(partition, newest)
            await require_fold(partition, newest)

    asyncio.run(run())


async def test_sessions_that_move_are_folded_before_anybody_asks() -> None:
    async with following() as (partition, materializer), running(materializer):
        await do(partition, *ANSWER)
        expected = len(await log_of(partition))
        await until(lambda: materializer.records_folded == expected)
        await require_fold(partition, materializer)
        assert materializer.records_folded == expected


async def test_two_who_ask_at_once_share_the_folding() -> None:
    async with following() as (partition, materializer):
        await do(partition, *ANSWER)
        both = await asyncio.gather(told(materializer), told(materializer))
        assert both[0].items == both[1].items
        assert materializer.records_folded == both[0].position


async def test_what_is_not_a_session_is_left_alone() -> None:
    async with following() as (partition, materializer), running(materializer):
        await do(partition, create(b"1"), append(b"2"), create_session())
        await do(partition, message("m"))
        await until(lambda: materializer.sessions == 1)
        assert await materializer.messages("sessions/none") is None


# -- snapshots -------------------------------------------------------------------------------------------------------


async def snapshot_positions(store: HeldStore) -> list[int]:
    return [snapshot.position for checkpoint in store.written for snapshot in checkpoint.snapshots]


async def test_restart_goes_on_from_the_snapshot(tmp_path: Path) -> None:
    """Issue A, 8: GET /messages costs O(messages), not O(chunks)."""
    app = create_app(Settings(data_dir=tmp_path / "data"))
    async with app.running():
        await do(app.partition, create_session(), chunks("g", 0, *[b'"x"'] * 5000))
        await do(app.partition, finish("g", 1))
        before = await told(app.materializer)
    again = create_app(Settings(data_dir=tmp_path / "data"))
    async with again.running():
        after = await told(again.materializer)
        assert (after.position, after.items) == (before.position, before.items)
        assert again.materializer.records_folded == 0
        await do(again.partition, message("m"))
        await require_fold(again.partition, again.materializer)
        assert again.materializer.records_folded == 1


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


@pytest.mark.parametrize("stored", [b"", b"\xff", b"{}", b"[1]", b'{"version":2,"facts":{},"chunks":0,"fold":null}'])
async def test_snapshot_that_cannot_be_read_is_folded_anew(stored: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with following() as (partition, materializer):
        await do(partition, *ANSWER)
        await told(materializer)
        damaged = [msgspec.structs.replace(s, messages=[(0, "m", stored)]) for s in materializer.snapshots()]
        partition.snapshots = lambda: [damaged.pop()] if damaged else []
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
        assert materializer.snapshots() == []
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


# -- what it forgets -------------------------------------------------------------------------------------------------


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


async def test_deleted_session_is_forgotten() -> None:
    async with following() as (partition, materializer), running(materializer):
        await do(partition, *ANSWER)
        await until(lambda: materializer.sessions)
        await do(partition, delete_session())
        assert await materializer.messages(SESSION) is None
        await until(lambda: materializer.sessions == 0)


async def test_deleted_session_whose_records_a_fork_keeps_is_forgotten_too() -> None:
    async with following() as (partition, materializer), running(materializer):
        await do(partition, *ANSWER, fork_ref("kid", 7, path=SESSION))
        await until(lambda: materializer.sessions)
        await do(partition, delete_session())
        assert await materializer.messages(SESSION) is None
        await until(lambda: materializer.sessions == 0)


async def test_session_of_the_same_name_begins_anew() -> None:
    async with following() as (partition, materializer):
        await do(partition, *ANSWER)
        await told(materializer)
        await partition.checkpoint()
        await do(partition, delete_session(), create_session(), message("first"))
        await require_fold(partition, materializer)
        assert [item["id"] for item in (await told(materializer)).items] == ["first"]
        await partition.checkpoint()
        restarted = Materializer(partition)
        await require_fold(partition, restarted)
        assert restarted.records_folded == 0


async def test_session_that_ends_while_it_is_folded_is_not_told_in_part() -> None:
    store, large = HeldStore(), text(limits.READ_BYTES_MAX)
    async with following(store) as (partition, materializer):
        await do(partition, create_session(), chunks("g", 0, large), chunks("g", 1, large))
        await partition.checkpoint()
        store.read_gate.shut()
        asking = asyncio.create_task(materializer.messages(SESSION))
        await store.read_gate.reached.wait()
        await do(partition, delete_session())
        await partition.checkpoint()
        while await partition.sweep():
            pass
        store.read_gate.open()
        assert await asking is None


async def test_session_that_ends_while_it_is_folded_leaves_no_snapshot_behind() -> None:
    """Its life was swept before: nobody would take the snapshot away."""
    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, *ANSWER)
        await partition.checkpoint()
        stream = await partition.stream(SESSION)
        assert stream is not None
        store.read_gate.shut()
        asking = asyncio.create_task(materializer.messages(SESSION))
        await store.read_gate.reached.wait()
        await do(partition, delete_session())
        await partition.checkpoint()
        while await partition.sweep():
            pass
        store.read_gate.open()
        await asking
        await partition.checkpoint()
        assert await store.snapshot(SESSION, stream.incarnation) is None


async def test_session_that_cannot_be_read_is_told_as_such_and_not_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following() as (partition, materializer):
        await do(partition, *ANSWER)

        async def nothing(*_args: object) -> None:
            pass

        with monkeypatch.context() as patch:
            patch.setattr(partition, "read", nothing)
            with pytest.raises(Unavailable):
                await materializer.messages(SESSION)
        await require_fold(partition, materializer)


async def test_session_that_cannot_be_read_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following() as (partition, materializer), running(materializer):
        stream = partition.stream

        async def refuse(path: str) -> object:
            if path == SESSION:
                raise Unavailable("disk")
            return await stream(path)

        monkeypatch.setattr(partition, "stream", refuse)
        await do(partition, create_session(), create_session(path=OTHER), message("m"), message("m", path=OTHER))
        await until(lambda: materializer.sessions == 1)
        assert len((await told(materializer, OTHER)).items) == 1


async def test_long_log_is_folded_in_slices_that_let_others_run() -> None:
    async with following() as (partition, materializer_):
        await do(partition, create_session(), chunks("g", 0, *[b'"x"'] * 20 * materializer.SLICE_RECORDS))
        asking = asyncio.create_task(told(materializer_))
        turns = 0
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 20
        await require_fold(partition, materializer_)
