"""The view of a session against a model of a broker: it equals the fold of the log, whatever it starts from."""

from contextlib import aclosing
from typing import Any

import pytest

from consumer import BadAnswer, Limits, NotFound, SessionView
from consumer.session import SessionFold
from tests.consumer.model import Fault, Model
from tests.consumer.records import answer, chunk, ended, opened, whole

HISTORY = [whole("u1"), *answer("g1", "a1", "Hel", "lo"), whole("u2")]
RUNNING = [opened("g2", "a2"), chunk("g2", 0, "a2", "\ud83d")]
REST = [chunk("g2", 1, "a2", "\ude00"), ended("g2", "a2")]


def items_of(records: list[Any]) -> list[Any]:
    folding = SessionFold()
    for record in records:
        folding.add(record)
    return folding.items()


async def at(model: Model, *records: Any) -> None:
    """The broker has these records, and a snapshot of them."""
    model.records = list(records)
    model.messages = items_of(model.records)
    model.messages_offset = f"{len(model.records):04}"


async def test_it_begins_with_the_snapshot_and_reads_only_what_is_newer() -> None:
    async with Model() as model:
        await at(model, *HISTORY)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            assert view.messages == items_of(HISTORY)
            await model.append(*RUNNING)
            await model.append(*REST)
            await model.close()
            async for change in changes:
                assert change.messages == [] or change.messages == [view.message("a2")]
            assert view.messages == items_of([*HISTORY, *RUNNING, *REST])
            assert view.offset == f"{len(model.records):04}"

    assert "-1" not in {asked.query.get("offset") for asked in model.asked}


async def test_a_running_answer_is_folded_from_the_start_of_the_log() -> None:
    async with Model() as model:
        await at(model, *HISTORY, *RUNNING)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            assert view.messages == items_of([*HISTORY, *RUNNING])
            await model.append(*REST)
            await model.close()
            last = [change async for change in changes][-1]
            assert (last.closed, last.offset) == (True, view.offset)
            assert view.messages == items_of([*HISTORY, *RUNNING, *REST])
            answered = view.message("a2")

    assert answered is not None
    assert answered["message"]["parts"][0]["text"] == "\N{GRINNING FACE}"


async def test_an_answer_that_goes_on_after_it_was_cut_short_is_folded_from_the_start_of_the_log() -> None:
    """What it goes on from is not in the broker's items: half a character is not."""
    cut = [opened("g", "m"), chunk("g", 0, "m", "\ud83d"), ended("g", "m", "failed")]
    rest = [opened("h", "m", continues="g"), chunk("h", 0, "m", "\ude00"), ended("h", "m")]
    async with Model(page_records=2) as model:
        model.escapes = True
        await at(model, *HISTORY, *cut)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            await model.append(*rest, whole("last"))
            await model.close()
            last = [change async for change in changes][-1]
            assert view.messages == items_of([*HISTORY, *cut, *rest, whole("last")])
            assert (last.closed, last.offset) == (True, view.offset)
            answered = view.message("m")

    assert answered is not None
    assert answered["message"]["parts"][0]["text"] == "\N{GRINNING FACE}"


async def test_a_change_names_what_changed_in_the_order_of_the_session() -> None:
    async with Model(page_records=50) as model:
        await at(model, *HISTORY)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            await model.append(opened("g2", "z"), whole("b"), chunk("g2", 0, "z", "text"))
            change = await anext(changes)

    assert [item["id"] for item in change.messages] == ["z", "b"]
    assert [item["status"] for item in change.messages] == ["streaming", "complete"]


async def test_it_goes_on_across_a_lost_connection() -> None:
    async with Model() as model:
        await at(model, *HISTORY)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            model.escapes = True
            model.live_faults += [Fault(bytes_sent=700), Fault(hang_up=True), Fault(bytes_sent=500)]
            await model.append(*RUNNING, *REST)
            await model.close()
            async for _ in changes:
                pass
            assert view.messages == items_of([*HISTORY, *RUNNING, *REST])


async def test_it_goes_on_where_events_are_held_back() -> None:
    async with Model() as model:
        await at(model, *HISTORY)
        model.escapes = True
        model.live_faults.append(Fault(bytes_sent=0, silent=True))
        limits = Limits(first_event_s_max=0.1)
        async with (
            SessionView(
                model.url, "s", headers={"authorization": lambda: "t"}, params={"tenant": "1"}, limits=limits
            ) as view,
            aclosing(view.follow()) as changes,
        ):
            await anext(changes)
            await model.append(*RUNNING, *REST)
            await model.close()
            async for _ in changes:
                pass
            assert view.messages == items_of([*HISTORY, *RUNNING, *REST])

    assert "long-poll" in {asked.query.get("live") for asked in model.asked}
    assert {(asked.headers["authorization"], asked.query["tenant"]) for asked in model.asked} == {("t", "1")}


async def test_a_session_that_is_not_there_cannot_be_entered() -> None:
    async with Model() as model:
        model.faults.append(Fault(status=404))
        with pytest.raises(NotFound):
            async with SessionView(model.url, "s"):
                pass


async def test_an_answer_that_is_no_snapshot_is_an_error() -> None:
    async with Model() as model:
        model.faults.append(Fault(status=200, body=b'{"messages":[1]}'))
        with pytest.raises(BadAnswer):
            async with SessionView(model.url, "s"):
                pass
