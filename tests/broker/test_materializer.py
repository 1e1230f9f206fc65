"""broker/materializer.py: what it answers is the fold of the log, now and as it stood, or it says that it cannot."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings, strategies as st

from broker import folded as folded_session, limits, materializer
from broker.errors import Overloaded, Unavailable
from broker.materializer import Materializer
from broker.partitions import Partitioned
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
from tests.broker.held import HeldStore
from tests.broker.materialized import (
    ANSWER,
    OTHER,
    do,
    following,
    listed,
    log_of,
    require_fold,
    require_past,
    running,
    text,
    told,
)
from tests.eventually import until

# -- the fold of the log ---------------------------------------------------------------------------------------------


async def delete_and_sweep(partition: Partitioned) -> None:
    """The session ends, and nothing of it is left."""
    await do(partition, delete_session())
    await partition.checkpoint()
    while await partition.sweep():
        pass


async def test_messages_are_the_fold_of_the_log_at_every_prefix() -> None:
    async with following() as (partition, materializer):
        for number, entry in enumerate(ANSWER):
            await do(partition, entry)
            await require_fold(partition, materializer)
            if number % 3 == 2:
                await partition.checkpoint()
        assert [item["status"] for item in listed(await told(materializer))] == [
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
        assert listed(both[0]) == listed(both[1])
        assert materializer.records_folded == both[0].position


async def test_what_is_not_a_session_is_left_alone() -> None:
    async with following() as (partition, materializer), running(materializer):
        await do(partition, create(b"1"), append(b"2"), create_session())
        await do(partition, message("m"))
        await until(lambda: materializer.sessions == 1)
        assert await materializer.messages("sessions/none") is None


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
        await delete_and_sweep(partition)
        store.read_gate.open()
        assert await going is None


# -- what ends, and what cannot be read ------------------------------------------------------------------------------


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
        assert [item.message_id for item in (await told(materializer)).items] == ["first"]
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
        await delete_and_sweep(partition)
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
        await delete_and_sweep(partition)
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
