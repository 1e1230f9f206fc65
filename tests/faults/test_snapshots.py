"""snapshot(X) = fold(log[0..X]) for every X, whatever process died when: `GET /messages?at=` against the log itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx

from consumer import Reader
from consumer.fold import FORMATS
from consumer.plain import decode, encode
from consumer.session import SessionFold
from consumer.verification import verify
from tests.live import Broker

DATA = Path(__file__).parents[1] / "data"
SESSIONS = ("a", "b", "c")
LIVES = 3
BATCHES_A_LIFE = 30
SEED = 20260107


def vectors(chance: random.Random) -> Iterator[Any]:
    """Answers of every format, without end."""
    files = [file.read_bytes().splitlines() for file in sorted(DATA.glob("*.jsonl"))]
    while True:
        vector: Any = decode(chance.choice(chance.choice(files)))
        if isinstance(vector, dict) and vector.get("format") in FORMATS and vector["chunks"]:
            yield vector


class Writer:
    """Writes answers into one session, batch by batch; what got no answer is sent again."""

    def __init__(self, url: str, session: str, chance: random.Random, answers: Iterator[Any]) -> None:
        self._session = f"{url}/v1/sessions/{session}"
        self._chance = chance
        self._answers = answers
        self._count = 0
        self._batches: list[tuple[str, dict[str, str], bytes]] = []  # of the answer that runs: what is not acknowledged

    async def create(self, client: httpx.AsyncClient) -> None:
        (await client.put(self._session)).raise_for_status()

    async def step(self, client: httpx.AsyncClient) -> None:
        """Send the next batch. Raises httpx.TransportError when nobody knows whether it arrived."""
        if not self._batches:
            self._batches = [*self._of_next_answer()]
        target, headers, body = self._batches[0]
        answer = await client.post(target, content=body, headers={"content-type": "application/json", **headers})
        assert answer.is_success, answer.text
        del self._batches[0]

    def _of_next_answer(self) -> Iterator[tuple[str, dict[str, str], bytes]]:
        self._count += 1
        vector = next(self._answers)
        yield f"{self._session}/messages", {}, encode({"id": f"q{self._count}", "role": "user", "text": "?"})
        target, seq = f"{self._session}/generations/g{self._count}", 0
        left = vector["chunks"][:60]
        while left:
            size = self._chance.randint(1, 12)
            yield f"{target}/chunks?format={vector['format']}", {"producer-seq": str(seq)}, encode(left[:size])
            left, seq = left[size:], seq + 1
        if self._chance.random() < 0.2:
            yield f"{target}/stop", {}, b""
        else:
            status = self._chance.choice(["complete", "failed"])
            yield f"{target}/finish", {"producer-seq": str(seq)}, encode({"status": status})


async def require_every_position(client: httpx.AsyncClient, broker: Broker, session: str) -> None:
    """The messages at each offset are the fold of the records before it."""
    fold, position = SessionFold(), 0
    async with Reader(broker.url) as reader:
        assert (await verify(reader, session)).differences == []
        async for page in reader.texts(f"sessions/{session}"):
            life = page.next_offset[16:]
            for record in page.records:
                fold.add(record)
                position += 1
                told = await client.get(f"{broker.url}/v1/sessions/{session}/messages?at={position:016x}{life}")
                items: Any = fold.items()
                assert told.json()["messages"] == decode(encode(items)), f"{session} at {position}"
    assert fold.malformed == 0


async def test_messages_at_every_offset_are_the_fold_of_the_log_across_kills(broker: Broker) -> None:
    """N4. In each life some answers run on, some end; the kill comes amid a request, a fold or a checkpoint."""
    chance = random.Random(SEED)
    answers = vectors(chance)
    writers = [Writer(broker.url, session, chance, answers) for session in SESSIONS]
    async with httpx.AsyncClient(timeout=20) as client:
        for writer in writers:
            await writer.create(client)
        for _ in range(LIVES):
            for _ in range(BATCHES_A_LIFE):
                await chance.choice(writers).step(client)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut_off, chance.choice(writers), client)
                await anyio.lowlevel.checkpoint()
                await broker.kill()
            await broker.start()
            for session in SESSIONS:
                async with Reader(broker.url) as reader:
                    assert (await verify(reader, session)).differences == []
        for session in SESSIONS:
            await require_every_position(client, broker, session)


async def cut_off(writer: Writer, client: httpx.AsyncClient) -> None:
    with suppress(httpx.TransportError):
        await writer.step(client)
