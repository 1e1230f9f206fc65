"""NDJSON uploads over a running broker: order, acks, and what ends them from elsewhere."""

import asyncio
import gzip
import zlib

import pytest

from consumer.wire import Code
from tests.broker.http.asgi import Client
from tests.broker.http.ndjson_upload import QUERY, Upload, chunks, state
from tests.broker.http.session_requests import G, S

pytestmark = pytest.mark.usefixtures("session")


# -- the way it goes -------------------------------------------------------------------------------------------------


async def test_lines_are_batches_that_count_up_from_the_first(client: Client) -> None:
    upload = Upload(client.app, query=f"{QUERY}&messageId=m")
    upload.say(b'"a"\n["b","c"]\n{"d":1}\n')
    ack = await upload.ack(2)
    assert (ack["fence"], ack["generationId"]) == (1, "g")
    upload.say(b"null\n")
    upload.end()
    done = await upload.ack(3)
    if "done" not in done:
        done = await upload.line()
    assert (done["seq"], done["done"], await upload.line()) == (3, True, None)
    await upload.task
    assert await chunks(client) == ["a", "b", "c", {"d": 1}, None]
    assert (await client.get(S)).json["offset"] == done["offset"]
    now = await state(client)
    assert (now["seq"], now["chunks"], now["status"], now["messageId"]) == (3, 5, "streaming", "m")


async def test_ack_comes_while_the_body_still_goes_on(client: Client) -> None:
    upload = Upload(client.app)
    for seq in range(3):
        upload.say(b'"x"\n')
        assert "done" not in await upload.ack(seq)
    upload.end()
    assert (await upload.line())["done"]


async def test_body_cut_anywhere_gives_the_same_batches(client: Client) -> None:
    body = '"é"\n\n["b"]\r\n  \n"last, without an end"'.encode()
    for step in range(1, 8):
        target = f"{S}/generations/g{step}"
        upload = Upload(client.app, target=target, query=f"{QUERY}&lane=l{step}")
        for at in range(0, len(body), step):
            upload.say(body[at : at + step])
        upload.end()
        await upload.ack(2)
        await upload.task
    assert await chunks(client) == ["é", "b", "last, without an end"] * 7


async def test_upload_goes_on_where_another_ended(client: Client) -> None:
    await client.post(f"{G}/chunks?{QUERY}", b'"a"', producer_seq="0")
    upload = Upload(client.app, 1, query="")
    upload.say(b'"b"\n"c"\n', more=False)
    await upload.ack(2)
    await upload.task
    assert (await client.post(f"{G}/finish", b"", producer_seq="3")).json["status"] == "complete"
    assert await chunks(client) == ["a", "b", "c"]


async def test_copies_are_told_so_and_where_the_original_landed(client: Client) -> None:
    first = Upload(client.app)
    first.say(b'"a"\n"b"\n', more=False)
    offset = (await first.ack(1))["offset"]
    again = Upload(client.app)
    again.say(b'"a"\n"b"\n')
    copy = await again.ack(1)
    assert (copy["duplicate"], copy["offset"]) == (True, offset)
    again.say(b'"c"\n', more=False)
    assert "duplicate" not in await again.ack(2)
    assert await chunks(client) == ["a", "b", "c"]


async def test_copies_of_an_ended_generation_are_told_so_until_the_end(client: Client) -> None:
    await client.post(f"{G}/chunks?{QUERY}", b'"a"', producer_seq="0")
    await client.post(f"{G}/finish", b"", producer_seq="1")
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    assert (await upload.ack(0))["duplicate"]
    upload.end()
    assert (await upload.line())["done"]


async def test_every_batch_carries_the_uploads_txid(client: Client) -> None:
    upload = Upload(client.app, query=f"{QUERY}&txid=t1")
    upload.say(b'"a"\n"b"\n', more=False)
    await upload.ack(1)
    records = (await client.get("/v1/stream/sessions/s")).json
    assert {record["headers"]["txid"] for record in records} == {"t1"}


@pytest.mark.parametrize("coding", ["gzip", "zlib-flushes"])
async def test_compressed_upload_is_read_as_it_comes(client: Client, coding: str) -> None:
    upload = Upload(client.app, content_encoding="gzip")
    packer = zlib.compressobj(wbits=31)
    for seq in range(3):
        line = b'"%d"\n' % seq
        upload.say(gzip.compress(line) if coding == "gzip" else packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH))
        await upload.ack(seq)
    upload.say(b"" if coding == "gzip" else packer.flush(), more=False)
    assert (await upload.line())["done"]
    assert await chunks(client) == ["0", "1", "2"]


async def test_metrics_tell_of_uploads(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n"b"\n')
    await upload.ack(1)
    said = (await client.get("/metrics")).body.decode()
    assert 'streamfold_uploads{mode="ndjson"} 1.0' in said
    assert "streamfold_upload_batches_total 2.0" in said
    upload.leave()
    await upload.task
    said = (await client.get("/metrics")).body.decode()
    assert 'streamfold_uploads{mode="ndjson"} 0.0' in said
    assert 'streamfold_uploads_begun_total{mode="ndjson"} 1.0' in said


# -- what ends it from elsewhere ---------------------------------------------------------------------------------------


async def test_stop_is_told_at_once_to_an_idle_upload(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    await client.post(f"{G}/stop", b'{"reason":"enough"}')
    error = (await upload.line())["error"]
    assert (error["code"], error["reason"], error["generationStatus"]) == ("FENCED", "stopped", "aborted")
    upload.leave()
    await upload.task


async def test_takeover_is_told_at_once_to_an_idle_upload(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    await client.post(f"{S}/generations/other/chunks?{QUERY}", b'"b"', producer_seq="0")
    error = (await upload.line())["error"]
    assert (error["code"], error["reason"], error["currentEpoch"]) == ("FENCED", "superseded", 2)
    upload.end()
    assert await upload.line() is None


async def test_delete_of_the_session_is_told_at_once_to_an_idle_upload(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    await client.send("DELETE", S)
    assert (await upload.line())["error"]["code"] == Code.SESSION_NOT_FOUND
    upload.end()
    assert await upload.line() is None


async def test_takeover_in_the_midst_of_batches_ends_the_upload_and_nothing_comes_after(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    taking = asyncio.create_task(client.post(f"{S}/generations/other/chunks?{QUERY}", b'"B"', producer_seq="0"))
    for _ in range(50):
        upload.say(b'"x"\n')
        await asyncio.sleep(0)
    upload.end()
    assert (await taking).status == 200
    acked = 0
    while "error" not in (line := await upload.line()):
        acked = line["seq"]
        assert "done" not in line
    assert line["error"]["code"] == "FENCED"
    assert (await state(client))["seq"] == acked
    assert (await chunks(client))[-1] == "B"


async def test_open_upload_does_not_keep_a_generation_alive_but_empty_lines_do(client: Client) -> None:
    upload = Upload(client.app, query=f"{QUERY}&leaseMs=1000")
    upload.say(b'"a"\n')
    await upload.ack(0)
    loop = asyncio.get_running_loop()
    until = loop.time() + 2.2
    while loop.time() < until:
        upload.say(b"\n")
        await asyncio.sleep(0.1)
    assert (await state(client))["status"] == "streaming"
    beats = client.app.partition.counts.outcomes
    assert sum(count for (kind, _), count in beats.items() if kind == 22) <= 8
    error = (await upload.line())["error"]
    assert (error["reason"], error["generationStatus"]) == ("LEASE_EXPIRED", "failed")
    upload.leave()
    await upload.task


async def test_drain_ends_every_upload_with_its_last_ack(client: Client) -> None:
    idle, busy = Upload(client.app), Upload(client.app, target=f"{S}/generations/h", query=f"{QUERY}&lane=h")
    unbegun = Upload(client.app, target=f"{S}/generations/i")
    idle.say(b'"a"\n')
    await idle.ack(0)
    busy.say(b'"x"\n' * 10)
    await busy.ack(9)
    client.app.drain()
    draining = asyncio.create_task(client.app.uploads.drain(5))
    for upload in (idle, busy):
        assert (await upload.line())["error"]["code"] == Code.UNAVAILABLE
        upload.end()
        assert await upload.line() is None
    unbegun.end()
    assert (await unbegun.answer()).code == Code.UNAVAILABLE
    await draining
    late = Upload(client.app)
    late.end()
    assert (await late.answer()).code == Code.UNAVAILABLE
