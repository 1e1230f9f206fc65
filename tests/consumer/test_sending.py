"""Optimistic messages: shown at once, confirmed or rolled back, and never listed twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest

from consumer import AccessDenied, BadRequest, Change, Conflict, Limits, NotFound, SessionView, Unavailable
from tests.consumer.model import Fault, Model
from tests.consumer.records import chunk, opened, whole
from tests.eventually import eventually

HASTY = Limits(backoff_s_initial=0.001, backoff_s_max=0.01, backoff_s_jitter=0.001, deadline_s=10)
MESSAGE = {"id": "m", "role": "user", "text": "hello"}


class Screen:
    """What somebody sees who draws every change; and it checks that no message is ever there twice."""

    def __init__(self, view: SessionView) -> None:
        self.view = view
        self.seen: list[dict[str, str]] = []
        self.changes: list[Change] = []

    def draw(self) -> None:
        ids = [item["id"] for item in self.view.messages]
        assert len(ids) == len(set(ids)), ids
        shown = {item["id"]: item["status"] for item in self.view.messages}
        if not self.seen or self.seen[-1] != shown:
            self.seen.append(shown)

    async def follow(self) -> None:
        async with aclosing(self.view.follow()) as changes:
            async for change in changes:
                self.changes.append(change)
                self.draw()

    async def until(self, *shown: dict[str, str]) -> None:
        """Wait until this was shown last."""

        async def look() -> bool:
            return self.seen[-len(shown) :] == [*shown]

        await eventually(look, 10)


@asynccontextmanager
async def watched(model: Model, limits: Limits = HASTY) -> AsyncIterator[tuple[SessionView, Screen]]:
    async with SessionView(model.url, "s", limits=limits) as view, anyio.create_task_group() as tasks:
        screen = Screen(view)
        tasks.start_soon(screen.follow)
        await screen.until({})
        yield view, screen
        tasks.cancel_scope.cancel()


# -- what is shown -------------------------------------------------------------------------------------------------


async def test_a_message_is_shown_before_the_broker_has_it_and_confirmed_when_it_has() -> None:
    async with Model() as model, watched(model) as (view, screen), anyio.create_task_group() as tasks:
        model.posting = asyncio.Event()
        tasks.start_soon(view.send, MESSAGE)
        await screen.until({"m": "optimistic"})
        assert view.message("m") == {"id": "m", "role": "user", "status": "optimistic", "message": MESSAGE}
        model.posting.set()
        await screen.until({"m": "optimistic"}, {"m": "complete"})

    assert [record["key"] for record in model.records] == ["m"]


async def test_what_was_sent_says_where_the_session_has_it() -> None:
    async with Model() as model, watched(model) as (view, screen):
        sent = await view.send(MESSAGE)
        await screen.until({"m": "complete"})

    (record,) = model.records
    assert (sent.message_id, sent.offset, sent.txid) == ("m", "0001", record["headers"]["txid"])


async def test_it_stands_at_the_end_until_the_log_tells_its_place() -> None:
    async with Model(page_records=50) as model, watched(model) as (view, screen), anyio.create_task_group() as tasks:
        model.posting = asyncio.Event()
        tasks.start_soon(view.send, MESSAGE)
        await screen.until({"m": "optimistic"})
        await model.append(opened("g", "a"), chunk("g", 0, "a", "text"))
        await screen.until({"a": "streaming", "m": "optimistic"})
        assert [item["id"] for item in view.messages] == ["a", "m"]
        model.posting.set()
        await screen.until({"a": "streaming", "m": "complete"})
        await model.append(whole("later"))
        await screen.until({"a": "streaming", "m": "complete", "later": "complete"})

    assert [item["id"] for item in view.messages] == ["a", "m", "later"]


async def test_several_messages_keep_the_order_in_which_they_were_sent() -> None:
    async with Model() as model, watched(model) as (view, screen), anyio.create_task_group() as tasks:
        model.posting = asyncio.Event()
        for name in ("z", "y", "x"):
            tasks.start_soon(view.send, {**MESSAGE, "id": name})
        await screen.until({"z": "optimistic", "y": "optimistic", "x": "optimistic"})
        assert [item["id"] for item in screen.changes[-1].messages] == [item["id"] for item in view.messages]
        assert [item["id"] for item in view.messages] == ["z", "y", "x"]
        tasks.cancel_scope.cancel()


async def test_a_message_is_sent_while_nobody_follows_and_shown_once_when_somebody_does() -> None:
    async with Model() as model, SessionView(model.url, "s", limits=HASTY) as view:
        await view.send(MESSAGE)
        assert [item["status"] for item in view.messages] == ["complete"]
        async with aclosing(view.follow()) as changes:
            while "createdAt" not in view.messages[0]:
                await anext(changes)
            assert len(view.messages) == 1


# -- confirmed, whatever happens to the answer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [Fault(hang_up=True), Fault(status=503), Fault(status=502), Fault(hang_up=True, late=True)],
    ids=["request lost", "503", "502", "answer lost"],
)
async def test_while_the_outcome_is_unknown_it_is_sent_again_under_the_same_id(lost: Fault) -> None:
    async with Model() as model, watched(model) as (view, screen):
        model.post_faults += [lost, lost]
        await view.send(MESSAGE)
        await screen.until({"m": "complete"})

    posted = [asked for asked in model.asked if asked.method == "POST"]
    assert len({asked.query["txid"] for asked in posted}) == 1
    assert [record["key"] for record in model.records] == ["m"]
    assert not any(change.removed for change in screen.changes)


async def test_its_record_in_the_log_confirms_it_though_no_answer_ever_comes() -> None:
    async with Model() as model, watched(model) as (view, screen):
        model.post_faults += [Fault(mute=True, late=True)]
        with anyio.fail_after(5):
            sent = await view.send(MESSAGE)
        await screen.until({"m": "complete"})

    assert sent.offset == "0001"


async def test_it_stays_across_a_reconnect() -> None:
    async with Model() as model, watched(model) as (view, screen), anyio.create_task_group() as tasks:
        model.posting = asyncio.Event()
        tasks.start_soon(view.send, MESSAGE)
        await screen.until({"m": "optimistic"})
        for _ in range(3):
            await view.reconnect()
        model.posting.set()
        await screen.until({"m": "complete"})

    assert screen.seen == [{}, {"m": "optimistic"}, {"m": "complete"}]


async def test_the_same_message_again_is_a_success_and_shown_once() -> None:
    async with Model() as model, watched(model) as (view, screen):
        first = await view.send(MESSAGE)
        await screen.until({"m": "complete"})
        again = await view.send(MESSAGE)

    assert (first.offset, len(model.records)) == (again.offset, 1)
    assert screen.seen[-1] == {"m": "complete"}


# -- rolled back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (409, "MESSAGE_EXISTS", Conflict),
        (404, "SESSION_NOT_FOUND", NotFound),
        (401, "TOKEN_EXPIRED", AccessDenied),
        (400, "INVALID_BODY", BadRequest),
    ],
)
async def test_a_message_that_is_refused_goes_with_the_reason(status: int, code: str, error: type[Exception]) -> None:
    async with Model() as model, watched(model) as (view, screen):
        model.post_faults.append(
            Fault(status=status, body=b'{"status":%d,"code":"%b","title":""}' % (status, code.encode()))
        )
        with pytest.raises(error, match=code):
            await view.send(MESSAGE)
        await screen.until({})
        assert view.messages == []
        await view.send({**MESSAGE, "id": "n"})
        await screen.until({"n": "complete"})

    assert [change.removed for change in screen.changes if change.removed] == [["m"]]


async def test_a_message_under_the_id_of_another_leaves_that_one_alone() -> None:
    async with Model() as model, watched(model) as (view, screen):
        await model.append(whole("m", text="theirs"))
        await screen.until({"m": "complete"})
        with pytest.raises(Conflict, match="MESSAGE_EXISTS"):
            await view.send(MESSAGE)
        shown = view.message("m")

    assert shown is not None
    assert shown["message"]["text"] == "theirs"
    assert not any(change.removed for change in screen.changes)


async def test_another_message_under_its_id_that_comes_first_takes_its_place() -> None:
    async with Model() as model, watched(model) as (view, screen):
        model.posting = asyncio.Event()
        refused = await failing(lambda: view.send(MESSAGE), screen.until({"m": "optimistic"}), model)

    assert isinstance(refused, Conflict)
    (item,) = view.messages
    assert (item["status"], item["message"]["text"]) == ("complete", "theirs")
    assert not any(change.removed for change in screen.changes)


async def failing(call: Callable[[], Awaitable[Any]], begun: Awaitable[None], model: Model) -> Exception | None:
    """What the call raises whose message is overtaken by another of the same id."""
    raised: list[Exception] = []

    async def run() -> None:
        try:
            await call()
        except Conflict as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await begun
        await model.append(whole("m", text="theirs"))
        assert model.posting is not None
        model.posting.set()
    return raised[0] if raised else None


async def test_without_an_answer_by_the_deadline_it_goes_and_comes_when_it_arrived_after_all() -> None:
    limits = Limits(deadline_s=0.3, backoff_s_initial=0.01)
    async with Model() as model, watched(model, limits) as (view, screen):
        model.posting = asyncio.Event()
        with pytest.raises(Unavailable):
            await view.send(MESSAGE)
        await screen.until({"m": "optimistic"}, {})
        await model.append(whole("m", text="hello"))
        await screen.until({"m": "complete"})


async def test_a_send_that_is_cancelled_is_not_shown_any_more() -> None:
    async with Model() as model, watched(model) as (view, screen):
        model.posting = asyncio.Event()
        with anyio.move_on_after(0.05):
            await view.send(MESSAGE)
        await screen.until({"m": "optimistic"}, {})


@pytest.mark.parametrize(
    "bad", [{}, {"id": "m"}, {"id": 1, "role": "user"}, {"id": "a/b", "role": "user"}, {"id": "m", "role": None}]
)
async def test_what_is_no_message_is_never_shown(bad: dict[str, Any]) -> None:
    async with Model() as model, SessionView(model.url, "s") as view:
        with pytest.raises(ValueError, match="id"):
            await view.send(bad)
        assert view.messages == []


async def test_a_message_that_is_being_sent_cannot_be_sent_at_the_same_time() -> None:
    async with Model() as model, watched(model) as (view, screen), anyio.create_task_group() as tasks:
        model.posting = asyncio.Event()
        tasks.start_soon(view.send, MESSAGE)
        await screen.until({"m": "optimistic"})
        with pytest.raises(ValueError, match="is being sent"):
            await view.send(MESSAGE)
        model.posting.set()
