"""broker/materializer.py: what it answers is the fold of the log, and what it forgets it can fold again."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from broker import Settings, create_app, folded as folded_session, limits, materializer
from broker.core.entry import Entry
from broker.core.page import Page, records
from broker.errors import Overloaded, Unavailable
from broker.folded import SNAPSHOT_BYTES_PER_RECORD, SNAPSHOT_RECORDS, Due
from broker.materializer import Materializer, Messages
from broker.partition import Partition
from broker.partitions import Partitioned
from broker.store import Snapshot
from consumer.plain import encode
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
    store: HeldStore | None = None,
    sessions_max: int = 100,
    bytes_max: int = limits.LIVE_SESSION_BYTES_MAX,
    whole_s: float = limits.WHOLE_SESSION_S,
) -> AsyncIterator[tuple[Partition, Materializer]]:
    """A partition, and a materializer that answers but does not run."""
    async with opened(HeldJournal(), store) as partition:
        yield partition, Materializer(partition, sessions_max, bytes_max, whole_s)


@asynccontextmanager
async def running(materializer: Materializer) -> AsyncIterator[None]:
    task = asyncio.create_task(materializer.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def do(partition: Partitioned, *entries: Entry) -> None:
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


async def log_of(partition: Partitioned, path: str = SESSION) -> list[bytes]:
    """Every record of a session."""
    found: list[bytes] = []
    while True:
        stream = await partition.stream(path)
        assert stream is not None
        page = await partition.read(path, stream, len(found), limits.READ_BYTES_MAX)
        if page is None:
            return found
        found += records(page)


async def require_fold(partition: Partitioned, materializer: Materializer, path: str = SESSION) -> None:
    """snapshot(X) = fold(log[0..X]), and X is all that was applied."""
    messages, log = await told(materializer, path), await log_of(partition, path)
    fold = SessionFold()
    for record in log:
        fold.add(record)
    assert (messages.position, messages.items) == (len(log), fold.items())
    assert fold.malformed == 0


async def require_past(partition: Partitioned, materializer: Materializer, position: int, path: str = SESSION) -> None:
    """What is told of `position` is fold(log[0..position])."""
    stream = await partition.stream(path)
    assert stream is not None
    messages, fold = await materializer.messages_at(path, stream, position), SessionFold()
    for record in (await log_of(partition, path))[:position]:
        fold.add(record)
    assert messages is not None
    assert (messages.position, messages.items) == (position, fold.items())


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
    st.sampled_from(
        (
            *("chunks", "side", "message", "finish", "stop", "go on"),
            *("checkpoint", "store", "forget", "crowd", "ask", "back"),
        )
    ),
    min_size=5,
    max_size=30,
)


class Walk:
    """A session that steps write to, store, forget and ask for."""

    def __init__(self, partition: Partitioned, materializer: Materializer, whole_s: float) -> None:
        self.partition = partition
        self._whole_s = whole_s
        self.newest = materializer
        self._seqs: dict[str, int] = {}
        self._generation = 0
        self._cut: list[str] = []  # generations that were stopped, and nobody went on with

    async def step(self, number: int, step: str) -> None:
        name = f"{'side' if step == 'side' else 'main'}-{self._generation}"
        if step in {"chunks", "side"}:
            seq = self._seqs.get(name, 0)
            self._seqs[name] = seq + 1
            await do(self.partition, chunks(name, seq, b'"%d"' % number, lane=name.partition("-")[0]))
        elif step == "message":
            await do(self.partition, message(f"m{number}", b'{"id":"m%d","role":"user"}' % number))
        elif step in {"finish", "stop"}:
            if name not in self._seqs:
                await self.step(number, "chunks")
            await do(self.partition, stop(name) if step == "stop" else finish(name, self._seqs[name]))
            self._cut += [name] if step == "stop" else []
            self._generation += 1
        elif step == "go on" and self._cut:
            if name in self._seqs:
                await self.step(number, "finish")
                name = f"main-{self._generation}"
            cut = self._cut.pop(0)  # the one that was stopped first: the likeliest not to be in memory
            await do(self.partition, chunks(name, 0, b'"on"', message_id=await self._message_of(cut), continues=cut))
            self._seqs[name] = 1
        else:
            await self._look(number, step)

    async def _message_of(self, generation_id: str) -> str:
        generation = await self.partition.generation(SESSION, generation_id)
        assert generation is not None
        return generation.message_id

    async def _look(self, number: int, step: str) -> None:
        match step:
            case "checkpoint":
                await self.partition.checkpoint()
            case "store":  # as it goes when nobody asks
                await self.newest.follow(SESSION)
                await self.partition.checkpoint()
            case "forget":
                self.newest = Materializer(self.partition, sessions_max=1, whole_s=self._whole_s)
            case "crowd":  # another session takes the place
                await told(self.newest, OTHER)
            case "ask":
                await require_fold(self.partition, self.newest)
            case "back":
                tail = len(await log_of(self.partition))
                await require_past(self.partition, self.newest, number * 7 % (tail + 1))


@settings(max_examples=60)
@given(STEPS, st.sampled_from((0.0, limits.WHOLE_SESSION_S)))
def test_messages_are_the_fold_whatever_was_stored_and_forgotten_between(steps: list[str], whole_s: float) -> None:
    async def run() -> None:
        async with following(whole_s=whole_s) as (partition, first):
            await do(partition, create_session(), create_session("m", b'{"id":"m","role":"user"}', path=OTHER))
            walk = Walk(partition, first, whole_s)
            for number, step in enumerate(steps):
                await walk.step(number, step)
            await require_fold(partition, walk.newest)
            for position in range(len(await log_of(partition)) + 1):
                await require_past(partition, walk.newest, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded_session, "RECENT_MESSAGES", 1)
        patch.setattr(folded_session, "SNAPSHOT_RECORDS", 1)
        asyncio.run(run())


WRITES = ("chunks", "side", "message", "finish", "finish", "stop", "stop", "go on")


@pytest.mark.parametrize("seed", range(2))
async def test_messages_are_the_fold_on_a_long_walk_that_lets_go_of_most(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded_session, "RECENT_MESSAGES", 1)
    monkeypatch.setattr(folded_session, "SNAPSHOT_RECORDS", 1)
    monkeypatch.setattr(folded_session, "SNAPSHOT_BYTES_PER_RECORD", 1 << 30)
    chance = random.Random(seed)
    recalls = 0
    async with following(whole_s=0.0) as (partition, first):
        await do(partition, create_session())
        walk = Walk(partition, first, 0.0)
        for number in range(300):
            await walk.step(number, chance.choice(WRITES) if number % 3 else "store")
            if number % 25 == 24:
                before = walk.newest.size_bytes
                await walk.step(number, chance.choice(("ask", "back")))
                recalls += walk.newest.size_bytes > before
    assert recalls > 5


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


# -- going back ------------------------------------------------------------------------------------------------------


async def test_no_more_go_back_at_once_than_the_bound() -> None:
    store = HeldStore()
    async with following(store) as (partition, materializer):
        await do(partition, *ANSWER)
        await told(materializer)
        await partition.checkpoint()
        stream = await partition.stream(SESSION)
        assert stream is not None
        store.read_gate.shut()
        going = [
            asyncio.create_task(materializer.messages_at(SESSION, stream, 3)) for _ in range(2 * limits.PAST_FOLDS_MAX)
        ]
        await store.read_gate.reached.wait()
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await materializer.messages_at(SESSION, stream, 3)
        store.read_gate.open()
        told_all = await asyncio.gather(*going)
        assert all(messages is not None and messages.position == 3 for messages in told_all)
        await require_past(partition, materializer, 4)


async def test_session_that_ends_while_somebody_goes_back_in_it_is_not_told_in_part() -> None:
    store, large = HeldStore(), text(limits.READ_BYTES_MAX)
    async with following(store) as (partition, materializer):
        await do(partition, create_session(), chunks("g", 0, large), chunks("g", 1, large), finish("g", 2))
        await told(materializer)
        await partition.checkpoint()
        stream = await partition.stream(SESSION)
        assert stream is not None
        store.read_gate.shut()
        going = asyncio.create_task(materializer.messages_at(SESSION, stream, 3))
        await store.read_gate.reached.wait()
        await do(partition, delete_session())
        await partition.checkpoint()
        while await partition.sweep():
            pass
        store.read_gate.open()
        assert await going is None


# -- snapshots -------------------------------------------------------------------------------------------------------


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
        assert (after.position, after.items) == (before.position, before.items)
        assert again.materializer.records_folded == 0
        await do(again.partition, message("m"))
        await require_fold(again.partition, again.materializer)
        assert again.materializer.records_folded == 1


class CountingStore(HeldStore):
    """Counts what is read of it: bytes of pages, and of snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.page_bytes = 0
        self.snapshot_bytes = 0
        self.is_lost = False

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        pages = await super().read(incarnation, position, bytes_max)
        self.page_bytes += sum(len(page.data) for page in pages)
        return pages

    async def snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        snapshot = None if self.is_lost else await super().snapshot(path, incarnation)
        self.snapshot_bytes += sum(len(data) for _, _, data in snapshot.messages) if snapshot else 0
        return snapshot


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
        items = (await told(Materializer(partition))).items
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


async def test_checkpoint_that_is_given_up_while_it_takes_snapshots_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def wait(_self: Due) -> None:
        begun.set()
        may_go_on.wait()

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


async def answers(partition: Partitioned, first: int, end: int) -> None:
    """So many short answers, a checkpoint now and then."""
    for number in range(first, end):
        await do(partition, chunks(f"g{number}", 0, b'"x"'), finish(f"g{number}", 1))
        if number % 20 == 19:
            await until(lambda: partition.in_flight == 0)
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
        await materializer.follow(SESSION)
        await answers(partition, 0, 99)
        await materializer.follow(SESSION)
        await partition.checkpoint()
        await asyncio.gather(*(told(materializer) for _ in range(5)))
        once = store.snapshot_bytes
        await require_fold(partition, materializer)
        assert 0 < once == store.snapshot_bytes


async def test_answer_that_was_let_go_is_gone_on_with() -> None:
    async with following() as (partition, materializer):
        await do(partition, create_session(), chunks("cut", 0, b'"a"'), stop("cut"))
        await materializer.follow(SESSION)
        await answers(partition, 0, 99)
        await materializer.follow(SESSION)
        await partition.checkpoint()
        assert materializer.size_bytes < 40 * folded_session.MESSAGE_BYTES
        await do(partition, chunks("on", 0, b'"b"', message_id="cut", continues="cut"))
        await materializer.follow(SESSION)
        await require_fold(partition, materializer)
        assert b'"ab"' in encode((await told(materializer)).items[0])


async def test_what_was_let_go_and_cannot_be_read_is_folded_anew(caplog: pytest.LogCaptureFixture) -> None:
    store = CountingStore()
    async with following(store) as (partition, materializer):
        await do(partition, create_session())
        await materializer.follow(SESSION)
        await answers(partition, 0, 99)
        await materializer.follow(SESSION)
        await partition.checkpoint()
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
