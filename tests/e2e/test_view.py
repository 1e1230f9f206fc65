"""Views of one session on several devices: messages sent from them, answers that stall, against a real broker."""

from contextlib import aclosing

import anyio
import httpx
import pytest

from consumer import Conflict, Limits, NotFound, SessionView
from producer import Producer
from tests.eventually import eventually, until
from tests.live import Broker

PROMPT = Limits(backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01, stalled_s=0.5)
MESSAGE = {"id": "u1", "role": "user", "text": "\ud83d and \u2028"}

pytestmark = pytest.mark.usefixtures("session_s")


async def draw(view: SessionView, drawn: list[list[tuple[str, str]]]) -> None:
    """Follow, and write down what is shown each time; nothing is ever shown twice."""
    async with aclosing(view.follow()) as changes:
        async for _ in changes:
            shown = [(item["id"], item["status"]) for item in view.messages]
            assert len(shown) == len(dict(shown))
            if not drawn or drawn[-1] != shown:
                drawn.append(shown)


async def test_a_view_that_is_not_followed_any_more_lets_its_connection_go(broker: Broker) -> None:
    async with SessionView(broker.url, "s", limits=PROMPT) as view, httpx.AsyncClient() as client:

        async def live_readers() -> list[str]:
            metrics = await client.get(f"{broker.url}/metrics")
            return [line for line in metrics.text.splitlines() if line == 'streamfold_live_readers{mode="sse"} 1.0']

        async with aclosing(view.follow()) as changes:
            await anext(changes)
            await eventually(live_readers, 20)
        await view.send(MESSAGE)

        async def nobody_reads() -> bool:
            return not await live_readers()

        await eventually(nobody_reads, 5)


async def test_a_message_sent_from_one_device_is_on_all_of_them(broker: Broker) -> None:
    drawn: list[list[tuple[str, str]]] = []
    async with (
        SessionView(broker.url, "s", limits=PROMPT) as phone,
        SessionView(broker.url, "s", limits=PROMPT) as desktop,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(draw, phone, drawn)
        tasks.start_soon(draw, desktop, [])
        await until(lambda: drawn == [[]])
        sent = await phone.send(MESSAGE)
        await until(lambda: phone.offset == desktop.offset == sent.offset)
        assert phone.messages == desktop.messages
        tasks.cancel_scope.cancel()

    assert phone.messages[0]["message"] == MESSAGE
    assert drawn == [[], [("u1", "optimistic")], [("u1", "complete")]]


async def test_the_id_of_another_message_is_refused_and_the_message_rolled_back(broker: Broker) -> None:
    drawn: list[list[tuple[str, str]]] = []
    async with (
        SessionView(broker.url, "s", limits=PROMPT) as early,
        SessionView(broker.url, "s", limits=PROMPT) as view,
        anyio.create_task_group() as tasks,
    ):
        await early.send({**MESSAGE, "text": "first"})
        with pytest.raises(Conflict, match="MESSAGE_EXISTS"):
            await view.send(MESSAGE)
        assert view.messages == []
        tasks.start_soon(draw, view, drawn)
        await until(lambda: drawn == [[("u1", "complete")]])
        tasks.cancel_scope.cancel()

    assert view.messages[0]["message"]["text"] == "first"


async def test_a_message_to_a_session_that_was_deleted_is_rolled_back(broker: Broker) -> None:
    async with SessionView(broker.url, "s", limits=PROMPT) as view, httpx.AsyncClient() as client:
        (await client.delete(f"{broker.url}/v1/sessions/s")).raise_for_status()
        with pytest.raises(NotFound, match="SESSION_NOT_FOUND"):
            await view.send(MESSAGE)
        assert view.messages == []


async def test_a_message_is_sent_once_though_the_broker_is_killed_meanwhile(broker: Broker) -> None:
    count = 30
    drawn: list[list[tuple[str, str]]] = []
    async with SessionView(broker.url, "s", limits=PROMPT) as view, anyio.create_task_group() as tasks:
        tasks.start_soon(draw, view, drawn)

        async def send() -> None:
            for number in range(count):
                await view.send({"id": f"m{number}", "role": "user", "text": str(number)})

        async with anyio.create_task_group() as sending:
            sending.start_soon(send)
            for _ in range(2):
                await broker.restart()
        await until(lambda: len(view.messages) == count and all("createdAt" in item for item in view.messages))
        tasks.cancel_scope.cancel()

    assert [item["message"]["text"] for item in view.messages] == [str(number) for number in range(count)]
    async with SessionView(broker.url, "s") as later:
        assert later.messages == view.messages


async def test_an_answer_stalls_while_its_producer_is_quiet_and_goes_on_with_it(broker: Broker) -> None:
    drawn: list[list[tuple[str, str]]] = []
    async with (
        Producer(broker.url) as producer,
        SessionView(broker.url, "s", limits=PROMPT) as view,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(draw, view, drawn)
        async with producer.generation("s", "g", format="text") as generation:
            await generation.write("a")
            await until(lambda: view.status == "stalled" and drawn[-1] == [("g", "stalled")])
            await generation.write("b")
            await until(lambda: view.status == "streaming")
        await until(lambda: view.status == "idle" and drawn[-1] == [("g", "complete")])
        tasks.cancel_scope.cancel()

    assert [shown[0][1] for shown in drawn if shown] == ["streaming", "stalled", "streaming", "complete"]
