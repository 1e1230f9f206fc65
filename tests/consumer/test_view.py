"""The view of a session against a model of a broker: it equals the fold of the log, whatever it starts from."""

from contextlib import aclosing
from typing import Any

import anyio
import pytest

from consumer import BadAnswer, Gone, Limits, NotFound, SessionView
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


async def test_it_is_live_after_the_snapshot_without_a_page_between() -> None:
    async with Model() as model:
        await at(model, *HISTORY)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            assert (await anext(changes)).up_to_date
        asked = [(asked.path, asked.query) for asked in model.asked]

    assert [path.rpartition("/")[2] for path, _ in asked] == ["messages", "s"]
    assert asked[1][1] == {"offset": view.offset, "live": "sse"}


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


# -- answers that go quiet -----------------------------------------------------------------------------------------


def statuses(view: SessionView) -> list[str]:
    return [item["status"] for item in view.messages]


async def test_a_running_answer_that_goes_quiet_is_stalled_until_its_next_chunk() -> None:
    async with Model(page_records=50) as model:
        model.escapes = True
        await at(model, *RUNNING)
        limits = Limits(stalled_s=0.2)
        async with SessionView(model.url, "s", limits=limits) as view, aclosing(view.follow()) as changes:
            seen = [(view.status, statuses(view))]
            await anext(changes)
            change = await anext(changes)
            assert [item["status"] for item in change.messages] == ["stalled"]
            seen.append((view.status, statuses(view)))
            await model.append(REST[0])
            await anext(changes)
            seen.append((view.status, statuses(view)))
            await anext(changes)
            seen.append((view.status, statuses(view)))
            await model.append(REST[1])
            await anext(changes)
            seen.append((view.status, statuses(view)))

    running, stalled, over = ("streaming", ["streaming"]), ("stalled", ["stalled"]), ("idle", ["complete"])
    assert seen == [running, stalled, running, stalled, over]


async def test_a_new_run_is_told_as_it_is_after_one_that_stalled() -> None:
    async with Model(page_records=50) as model:
        model.escapes = True
        await at(model, *RUNNING)
        limits = Limits(stalled_s=0.2)
        async with SessionView(model.url, "s", limits=limits) as view, aclosing(view.follow()) as changes:
            while view.status != "stalled":
                await anext(changes)
            await model.append(ended("g2", "a2", "aborted", reason="superseded"), opened("g3", "a3"))
            await anext(changes)
            assert (view.status, statuses(view)) == ("pending", ["aborted", "pending"])


async def test_a_session_at_rest_never_stalls() -> None:
    async with Model() as model:
        await at(model, *HISTORY)
        limits = Limits(stalled_s=0.05)
        async with SessionView(model.url, "s", limits=limits) as view, aclosing(view.follow()) as changes:
            await anext(changes)
            with anyio.move_on_after(0.3) as waiting:
                await anext(changes)

    assert waiting.cancelled_caught


# -- how following goes --------------------------------------------------------------------------------------------


async def test_who_is_slow_gets_several_changes_as_one() -> None:
    async with Model(page_records=1) as model:
        model.escapes = True
        await at(model, *HISTORY)
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            await model.append(*RUNNING, *REST)
            await model.close()
            while view.message("a2") != items_of([*RUNNING, *REST])[0]:  # noqa: ASYNC110  nobody tells who does not ask
                await anyio.sleep(0.01)
            change = await anext(changes)

    assert [(item["id"], item["status"]) for item in change.messages] == [("a2", "complete")]


async def test_a_view_can_be_followed_again_where_it_stands() -> None:
    async with Model() as model:
        model.escapes = True
        await at(model, *HISTORY)
        async with SessionView(model.url, "s") as view:
            async with aclosing(view.follow()) as changes:
                await anext(changes)
                with pytest.raises(RuntimeError, match="once at a time"):
                    await anext(view.follow())
            await model.append(*RUNNING, *REST)
            await model.close()
            again = [change async for change in view.follow()]
            assert view.messages == items_of([*HISTORY, *RUNNING, *REST])

    assert again[-1].closed


async def test_what_ends_the_following_is_raised_after_all_changes_were_told() -> None:
    async with Model() as model:
        await at(model, *HISTORY)
        model.live_ends = True
        model.live_faults += [Fault(), Fault(status=410)]
        async with SessionView(model.url, "s") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            with pytest.raises(Gone):
                await anext(changes)


async def test_an_error_inside_a_view_comes_out_as_it_is() -> None:
    async def fail(url: str) -> None:
        async with SessionView(url, "s") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            raise KeyError("mine")

    async with Model() as model:
        with pytest.raises(KeyError, match="mine"):
            await fail(model.url)


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
