"""The protocol's client for Python, `durable-streams` 0.1.0: older than closure and idempotent producers."""

from typing import Literal

import anyio
import anyio.to_thread
import pytest
from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    SeqConflictError,
    StreamExistsError,
    StreamNotFoundError,
    astream,
    stream,
)

from tests.live import Broker

START = "-1"
"""Given for live reads: this client asks for one without an offset if it has none, which the protocol refuses."""
RECORDS = [{"n": 1}, "two", [3], None]


async def test_a_stream_is_made_appended_to_read_and_deleted(broker: Broker) -> None:
    url = f"{broker.url}/v1/stream/tour"
    async with await AsyncDurableStream.create(url, content_type="application/json") as handle:
        ends = [(await handle.append(record, seq=f"w{n}")).next_offset for n, record in enumerate(RECORDS)]
        with pytest.raises(SeqConflictError):
            await handle.append("late", seq="w0")
        head = await handle.head()

        async with astream(url, live=False) as whole, astream(url, offset=ends[1], live=False) as rest:
            assert await whole.read_json() == RECORDS
            assert await rest.read_json() == RECORDS[2:]
            assert (whole.offset, whole.up_to_date) == (ends[-1], True)
        with pytest.raises(StreamExistsError):
            await AsyncDurableStream.create(url, content_type="text/plain")
        await handle.delete()
        with pytest.raises(StreamNotFoundError):
            await handle.head()

    assert (head.content_type, head.offset) == ("application/json", ends[-1])


async def test_appends_at_once_are_batched_and_keep_their_order(broker: Broker) -> None:
    url = f"{broker.url}/v1/stream/numbers"
    async with (
        await AsyncDurableStream.create(url, content_type="application/json") as handle,
        anyio.create_task_group() as tasks,
    ):
        for number in range(100):
            tasks.start_soon(handle.append, number)

    async with astream(url, live=False) as read:
        assert await read.read_json() == list(range(100))


@pytest.mark.parametrize("live", ["auto", "long-poll", "sse"])
async def test_a_stream_is_followed_while_it_is_written(
    broker: Broker, live: Literal["auto", "long-poll", "sse"]
) -> None:
    url = f"{broker.url}/v1/stream/numbers"
    seen: list[int] = []
    async with (
        await AsyncDurableStream.create(url, content_type="application/json", body=b"[0]") as handle,
        astream(url, offset=START, live=live) as read,
    ):
        async for item in read.iter_json():
            seen.append(item)
            if item == 20:
                break
            await handle.append(item + 1)

    assert seen == list(range(21))


async def test_its_blocking_form_reads_bytes_while_they_are_written(broker: Broker) -> None:
    assert await anyio.to_thread.run_sync(bytes_written_and_read, f"{broker.url}/v1/stream/bytes") == bytes(range(256))


def bytes_written_and_read(url: str) -> bytes:
    seen = b""
    with (
        DurableStream.create(url, content_type="application/octet-stream", body=b"\x00") as handle,
        stream(url, offset=START, live="long-poll") as read,
    ):
        for piece in read:
            seen += piece
            if len(seen) == 256:
                break
            handle.append(bytes(range(len(seen), min(256, len(seen) * 4))))
    return seen
