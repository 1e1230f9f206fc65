"""Reader and view against a real broker that is killed, deleted from and cut off."""

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from consumer import Gone, Limits, NotFound, Reader, SessionView, Unavailable
from producer import Limits as ProducerLimits, Producer
from tests.live import Broker

PROMPT = Limits(backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01)
SSE_LIFE_S = 0.3
"""So short that every test here outlives some connections that the broker ends in order."""


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "data", env={"STREAMFOLD_SSE_LIFE_S": str(SSE_LIFE_S)}) as running:
        yield running


async def put(broker: Broker, path: str, content_type: str, body: bytes = b"") -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.put(
            f"{broker.url}/v1/stream/{path}", content=body, headers={"content-type": content_type}
        )
        answer.raise_for_status()


async def post(broker: Broker, path: str, content_type: str, body: bytes, **headers: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{broker.url}/v1/stream/{path}", content=body, headers={"content-type": content_type, **headers}
        )
        answer.raise_for_status()


async def delete(broker: Broker, path: str) -> None:
    async with httpx.AsyncClient() as client:
        (await client.delete(f"{broker.url}/v1/stream/{path}")).raise_for_status()


async def append_numbers(broker: Broker, path: str, count: int) -> None:
    """Append 0, 1, 2 … one by one, each again until it is acknowledged; then close."""
    async with httpx.AsyncClient() as client:
        for seq in range(count + 1):
            headers = {"content-type": "application/json", "producer-id": "p", "producer-epoch": "0"}
            headers["producer-seq"] = str(seq)
            if seq == count:
                headers["stream-closed"] = "true"
            body = b"%d" % seq if seq < count else b""
            await send_until_acknowledged(client, f"{broker.url}/v1/stream/{path}", headers, body)


async def send_until_acknowledged(client: httpx.AsyncClient, url: str, headers: dict[str, str], body: bytes) -> None:
    while True:
        with suppress(httpx.RequestError):
            answer = await client.post(url, headers=headers, content=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                answer.raise_for_status()
                return
        await anyio.sleep(0.01)


async def test_a_reader_sees_each_record_once_while_the_broker_is_killed_under_it(broker: Broker) -> None:
    count, kills = 200, 4
    seen: list[Any] = []
    await put(broker, "numbers", "application/json")

    async with anyio.create_task_group() as tasks, Reader(broker.url, limits=PROMPT) as reader:
        tasks.start_soon(append_numbers, broker, "numbers", count)
        async with aclosing(reader.follow("numbers")) as batches:
            async for batch in batches:
                before, seen = len(seen), [*seen, *batch.records]
                if before * (kills + 1) // count < len(seen) * (kills + 1) // count < kills + 1:
                    await broker.restart()

    assert seen == list(range(count))


async def test_readers_that_come_and_go_see_each_record_once(broker: Broker) -> None:
    count = 60
    seen: list[Any] = []
    offset = "-1"
    await put(broker, "numbers", "application/json")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_numbers, broker, "numbers", count)
        while len(seen) < count:
            async with (
                Reader(broker.url, limits=PROMPT) as reader,
                aclosing(reader.follow("numbers", offset)) as batches,
            ):
                for _ in range(5):
                    batch = await anext(batches, None)
                    if batch is None:
                        break
                    seen += batch.records
                    offset = batch.next_offset

    assert seen == list(range(count))


async def test_text_and_bytes_come_as_they_were_sent(broker: Broker) -> None:
    for path, content_type in (("text", "text/plain"), ("bytes", "application/octet-stream")):
        sent = [b"a\r", b"\nb\n\n", bytes(range(128)) if path == "text" else bytes(range(256)), b"\r"]
        await put(broker, path, content_type, sent[0])
        async with Reader(broker.url, limits=PROMPT) as reader, aclosing(reader.follow(path)) as batches:
            received = bytes((await anext(batches)).records)
            for body in sent[1:]:
                await post(broker, path, content_type, body)
            await post(broker, path, content_type, b"", **{"stream-closed": "true"})
            async for batch in batches:
                received += bytes(batch.records)

        assert received == b"".join(sent)


async def test_an_offset_of_a_deleted_stream_is_gone_even_if_it_exists_again(broker: Broker) -> None:
    await put(broker, "again", "application/json", b"[1,2]")
    async with Reader(broker.url, limits=PROMPT) as reader:
        offset = (await reader.read("again")).next_offset
        await delete(broker, "again")
        with pytest.raises(NotFound):
            await reader.read("again", offset)
        await put(broker, "again", "application/json", b"[3,4,5]")
        with pytest.raises(Gone):
            await reader.read("again", offset)
        assert (await reader.read("again")).records == [3, 4, 5]


async def test_a_view_equals_the_brokers_messages_while_an_answer_is_written_and_the_broker_killed(
    broker: Broker,
) -> None:
    words = [f"word{number} " for number in range(300)]

    async def write(producer: Producer) -> None:
        async with producer.generation("s", "g", message_id="a", format="text") as generation:
            for word in words:
                await generation.write(word)
                await generation.flush()

    async with (
        Producer(broker.url, limits=ProducerLimits(backoff_s_initial=0.01, backoff_s_max=0.1)) as producer,
        anyio.create_task_group() as tasks,
    ):
        await producer.create_session("s", message={"id": "u", "role": "user", "text": "\ud83d"})
        async with SessionView(broker.url, "s", limits=PROMPT) as early, aclosing(early.follow()) as changes:
            tasks.start_soon(write, producer)
            killed = False
            async for change in changes:
                item = early.message("a")
                if item is not None and len(text_of(item)) > 500 and not killed:
                    killed = True
                    await broker.restart()
                    async with SessionView(broker.url, "s", limits=PROMPT) as late:
                        assert text_of(late.messages[1]).startswith(text_of(item))
                if any(changed["status"] == "complete" for changed in change.messages if changed["id"] == "a"):
                    break
            async with SessionView(broker.url, "s", limits=PROMPT) as final:
                assert early.messages == final.messages
                assert early.offset == final.offset

    assert killed
    assert text_of(early.messages[1]) == "".join(words)


def text_of(item: dict[str, Any]) -> str:
    return "".join(part["text"] for part in item["message"]["parts"])


async def test_r30_who_waits_for_a_txid_is_told_when_it_can_be_read(broker: Broker) -> None:
    told: list[str] = []
    async with Producer(broker.url) as producer, Reader(broker.url, limits=PROMPT) as reader:
        await producer.create_session("s")

        async def wait() -> None:
            told.append(await reader.wait_for_txid("s", "mine"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            sent = await producer.send_message("s", {"id": "m", "role": "user"}, txid="mine")
        assert told == [sent.offset]
        [record] = (await reader.read("sessions/s")).records
        assert isinstance(record, dict)
        assert record["key"] == "m"


@pytest.mark.parametrize("upload", ["post", "ndjson", "websocket"])
async def test_r30_generation_names_its_opening_and_its_end(broker: Broker, upload: str) -> None:
    async with Producer(broker.url, upload=upload) as producer, Reader(broker.url, limits=PROMPT) as reader:
        await producer.create_session("s")
        async with producer.generation("s", "g", format="text", txid="begun") as generation:
            await generation.write("first")
            opened_at = await reader.wait_for_txid("s", "begun")
            receipt = await generation.flush()
            assert receipt is not None
            assert opened_at == receipt.offset
            await generation.write(", last")
            await generation.flush()  # which goes over the connection, if there is one
            ended = await generation.finish(txid="over")
        assert ended is not None
        assert await reader.wait_for_txid("s", "over", offset=opened_at) == ended.offset
        snapshot = await reader.messages("s", at=ended.offset)
        assert [(one["status"], text_of(one)) for one in snapshot.messages] == [("complete", "first, last")]
        records = [record for record in (await reader.read("sessions/s")).records if isinstance(record, dict)]
    named = [(record["type"], record["headers"].get("txid")) for record in records]
    assert named == [("generation", "begun"), ("chunk", "begun"), ("chunk", None), ("generation", "over")]


async def test_r30_txid_of_an_end_without_a_beginning_is_that_of_the_end(broker: Broker) -> None:
    async with Producer(broker.url) as producer, Reader(broker.url, limits=PROMPT) as reader:
        await producer.create_session("s")
        async with producer.generation("s", "g", txid="begun") as generation:
            with pytest.raises(ValueError, match="txid"):
                await generation.finish(txid="no id")
            ended = await generation.finish(txid="over")
        assert ended is not None
        assert await reader.wait_for_txid("s", "over") == ended.offset


async def test_r30_txid_that_never_comes_is_given_up_at_the_deadline(broker: Broker) -> None:
    limits = replace(PROMPT, deadline_s=0.5)
    async with Producer(broker.url) as producer, Reader(broker.url, limits=limits) as reader:
        await producer.create_session("s")
        with pytest.raises(Unavailable):
            await reader.wait_for_txid("s", "nobodys")
        with pytest.raises(ValueError, match="txid"):
            await reader.wait_for_txid("s", "no id")


async def test_r17_reader_takes_compressed_pages_and_resumes_in_them(broker: Broker) -> None:
    """By default it asks for none of a broker on this machine."""
    texts = [f"{n} {'a word or two ' * 100}" for n in range(300)]
    await put(broker, "s", "application/json", msgspec.json.encode(texts[:200]))
    async with Reader(broker.url) as reader:
        middle = (await reader.read("s")).next_offset
    await post(broker, "s", "application/json", msgspec.json.encode(texts[200:]))
    async with Reader(broker.url, headers={"Accept-Encoding": "gzip"}) as reader:
        assert (await reader.read("s")).records == texts
        assert (await reader.read("s", middle)).records == texts[200:]
    async with httpx.AsyncClient() as client:
        page = await client.get(f"{broker.url}/v1/stream/s", headers={"accept-encoding": "gzip"})
    assert page.headers["content-encoding"] == "gzip"
    assert page.json() == texts
