"""R17: large requests of the producer travel compressed, and are read as if they were not."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from consumer import Reader
from consumer.transport import HttpTransport, Pool, Request, Response, Transport
from producer import Limits, Producer
from producer.compression import CODINGS, CompressingTransport
from tests.faults.proxy import Proxy, every_first_time
from tests.live import Broker, free_port

LIMITS = Limits(backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01, compress_bytes_min=2000)
TEXT = "a sentence that is said again and again. " * 100


class Wire:
    """Passes requests on, and notes the coding and the length of those with a body."""

    def __init__(self, url: str, accepted: str | None = None) -> None:
        self.travelled: list[tuple[str, int]] = []
        self._accepted = accepted
        self._http: Transport = HttpTransport(url, LIMITS, Pool(answer_bytes_max=2**20))

    async def send(self, request: Request) -> Response:
        coding = request.headers.get("content-encoding", "")
        self.travelled += [(coding, len(request.body))] if request.body else []
        if coding and self._accepted is not None and coding not in self._accepted.split(", "):
            return Response(415, {"accept-encoding": self._accepted}, b"")
        return await self._http.send(request)

    async def aclose(self) -> None:
        await self._http.aclose()

    @property
    def codings(self) -> list[str]:
        return [coding for coding, _ in self.travelled]


@asynccontextmanager
async def writing(wire: Wire, url: str, session_id: str) -> AsyncGenerator[Any, None]:
    async with Producer(url, limits=LIMITS, transport=wire) as producer:
        await producer.create_session(session_id)
        async with producer.generation(session_id, "g", format="text") as generation:
            yield generation


async def chunks_of(url: str, session_id: str) -> list[Any]:
    async with Reader(url) as reader:
        records = (await reader.read(f"sessions/{session_id}")).records
    return [record["value"]["chunk"] for record in records if isinstance(record, dict) and record["type"] == "chunk"]


async def test_large_batch_travels_compressed_and_a_small_one_does_not(live: Broker) -> None:
    wire = Wire(live.url)
    async with writing(wire, live.url, "sizes") as generation:
        for text in ("small", TEXT, "small again"):
            await generation.write(text)
            await generation.flush()
    small, large, again, finish = wire.travelled
    assert [small[0], again[0], finish[0]] == ["", "", ""]
    assert large[0] == next(iter(CODINGS))
    assert large[1] < len(TEXT) / 10
    assert await chunks_of(live.url, "sizes") == ["small", TEXT, "small again"]


@pytest.mark.parametrize("coding", CODINGS)
async def test_whole_message_travels_compressed_in_every_coding(live: Broker, coding: str) -> None:
    wire = Wire(live.url)
    transport = CompressingTransport(wire, 2000, [coding])
    target, body = (
        f"/v1/sessions/message-{coding}",
        b'{"message":{"id":"m","role":"user","parts":["%b"]}}' % TEXT.encode(),
    )
    async with httpx.AsyncClient(base_url=live.url) as client:
        answer = await transport.send(Request("PUT", target, body, {"content-type": "application/json"}))
        assert answer.status == 201
        [message] = (await client.get(f"{target}/messages")).json()["messages"]
    assert wire.codings == [coding]
    assert message["message"]["parts"] == [TEXT]
    await wire.aclose()


async def test_body_that_a_thread_compresses_arrives_whole(live: Broker) -> None:
    texts = [f"{n} {TEXT}" for n in range(100)]
    wire = Wire(live.url)
    async with writing(wire, live.url, "large") as generation:
        for text in texts:
            await generation.write(text)
    assert max(length for _, length in wire.travelled) < len(TEXT) * 10
    assert await chunks_of(live.url, "large") == texts


async def test_retry_of_a_compressed_batch_is_a_copy(live: Broker) -> None:
    """Its answer is lost, and it is sent again: the broker compares what it says, not how it travelled."""
    proxy = Proxy(free_port(), live.port, every_first_time())
    async with proxy.serving(), Producer(f"http://127.0.0.1:{proxy.port}", limits=LIMITS, upload="post") as producer:
        await producer.create_session("copies")
        async with producer.generation("copies", "g", format="text") as generation:
            for n in range(5):
                await generation.write(f"{n} {TEXT}")
                await generation.flush()
    assert proxy.withheld.qsize() >= 5
    assert await chunks_of(live.url, "copies") == [f"{n} {TEXT}" for n in range(5)]


async def test_broker_that_takes_one_coding_only_is_asked_in_that_from_then_on(live: Broker) -> None:
    wire = Wire(live.url, accepted="gzip")
    async with writing(wire, live.url, "gzip-only") as generation:
        for n in range(3):
            await generation.write(f"{n} {TEXT}")
            await generation.flush()
    assert [coding for coding in wire.codings if coding] == [
        *(name for name in CODINGS if name != "gzip"),
        *["gzip"] * 3,
    ]
    assert await chunks_of(live.url, "gzip-only") == [f"{n} {TEXT}" for n in range(3)]


async def test_broker_that_takes_no_coding_gets_plain_bodies_from_then_on(live: Broker) -> None:
    wire = Wire(live.url, accepted="")
    async with writing(wire, live.url, "plain-only") as generation:
        for n in range(3):
            await generation.write(f"{n} {TEXT}")
            await generation.flush()
    assert len([coding for coding in wire.codings if coding]) == 1
    assert await chunks_of(live.url, "plain-only") == [f"{n} {TEXT}" for n in range(3)]


@pytest.mark.parametrize("upload", ["ndjson", "websocket"])
async def test_what_streams_is_whole_beside_what_is_compressed(live: Broker, upload: str) -> None:
    """The first batch is a request and compressed, those behind it are lines or frames and are not."""
    texts = [f"{n} {TEXT}" for n in range(20)]
    async with Producer(live.url, limits=LIMITS, upload=upload) as producer:
        await producer.create_session(f"streams-{upload}")
        async with producer.generation(f"streams-{upload}", "g", format="text") as generation:
            for text in texts:
                await generation.write(text)
    assert await chunks_of(live.url, f"streams-{upload}") == texts


async def test_what_was_left_in_the_spool_catches_up_compressed(live: Broker, tmp_path: Path) -> None:
    """By requests, whatever running answers travel by: nobody waits there to be told of a stop."""
    spool = tmp_path / "spool"
    offline = Limits(finish_timeout_s=0.1, compress_bytes_min=2000)
    async with (
        Producer("http://127.0.0.1:9", limits=offline, spool=spool) as producer,
        producer.spooled("spooled", "g", format="text") as generation,
    ):
        for n in range(100):
            await generation.write(f"{n} {TEXT}")
    requests: list[bytes] = []

    def note(request: bytes) -> bool:
        requests.append(request)
        return False

    proxy = Proxy(free_port(), live.port, note)
    url = f"http://127.0.0.1:{proxy.port}"
    async with proxy.serving(), Producer(url, limits=LIMITS, spool=spool, upload="websocket") as producer:
        await producer.outbox.drained(20)
    assert not [request for request in requests if b"/upload" in request]
    assert sum(map(len, requests)) < 100 * len(TEXT) / 10
    assert "".join(await chunks_of(live.url, "spooled")) == "".join(f"{n} {TEXT}" for n in range(100))
