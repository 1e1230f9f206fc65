"""An upload whose client has gone while something of it was in flight: nobody else may notice."""

import asyncio

from broker.http.async_acks import AsyncAcks
from broker.http.live_readers import LiveReaders
from broker.http.request import Request
from broker.http.session_routes import Target
from broker.http.traffic import Traffic
from broker.http.uploads import Uploads
from broker.partition import Partition
from tests.broker.core.entries import SESSION, append, chunks, create, create_session, stop
from tests.broker.held import HeldJournal, content, opened
from tests.eventually import until

TARGET = Target(SESSION.removeprefix("sessions/"), "generations", "g", "chunks")


async def test_what_is_refused_behind_a_client_that_left_holds_up_nobody() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create())
        await partition.propose(create_session())
        await partition.propose(chunks("g", 0, b'"a"'))
        await partition.propose(stop("g"))
        journal.held = True
        uploads = await left_behind(partition, b'"late"')
        other = partition.propose_nowait(append(b"1"))
        journal.commit()
        async with asyncio.timeout(5):
            await other
        assert uploads.refusals == 1
        assert await content(partition) == b"1"
        assert partition.in_flight == 0


async def left_behind(partition: Partition, chunk: bytes) -> Uploads:
    """Upload a chunk and leave before it is durable."""
    uploads = Uploads(partition, Traffic(LiveReaders(10)), AsyncAcks(partition, is_allowed=False))
    request = Request("POST", "s", {b"content-type": b"application/x-ndjson"}, b"format=text")
    with uploads.upload("ndjson", request, TARGET) as upload:

        async def read() -> None:
            await upload.put(1, chunk)
            upload.leave()

        async def write() -> None:
            assert await upload.news() is None

        await upload.run(read, write)
    await until(lambda: partition.in_flight == 1)
    return uploads
