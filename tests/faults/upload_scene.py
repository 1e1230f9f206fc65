"""Uploads of one generation, for tests that cut them, kill their broker or send it rubbish: a broker, and raw bytes."""

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect

from tests.eventually import eventually
from tests.live import HOST, Broker

NDJSON = {"content-type": "application/x-ndjson"}
LINES = (b'"a"', b'["b","c"]', '{"é":1}'.encode(), b"null")
CHUNKS: list[Any] = ["a", "b", "c", {"é": 1}, None]


class Scene:
    """A broker, a client of it, and a session for each attempt."""

    def __init__(self, broker: Broker, http: httpx.AsyncClient) -> None:
        self.broker = broker
        self.http = http

    async def session(self, name: str) -> str:
        assert (await self.http.put(f"/v1/sessions/{name}")).status_code == 201
        return f"/v1/sessions/{name}/generations/g"

    async def chunks(self, generation: str) -> list[Any]:
        session = generation.split("/")[3]
        records = (await self.http.get(f"/v1/stream/sessions/{session}")).json()
        return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]

    async def seq(self, generation: str) -> int:
        """The highest batch that is there, -1 without any."""
        answer = await self.http.get(generation)
        return -1 if answer.status_code == 404 else int(answer.json()["seq"])

    async def batches(self, generation: str, seq: int, lines: Sequence[bytes]) -> Any:
        """Upload the rest; the last line of the answer."""
        headers = {**NDJSON, "producer-seq": str(seq)}
        answer = await self.http.post(f"{generation}/chunks?format=text", content=b"\n".join(lines), headers=headers)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text.splitlines()[-1])

    async def all_uploads_are_over(self) -> None:
        async def none_left() -> bool:
            lines = (await self.http.get("/metrics")).text.splitlines()
            return not sum(float(line.split()[-1]) for line in lines if line.startswith("streamfold_uploads{"))

        await eventually(none_left)
        # What they left in flight lies before this in the log.
        assert (await self.http.put(f"/v1/sessions/{uuid.uuid4().hex}")).status_code == 201


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Scene]:
    async with Broker(folder / "data") as broker, httpx.AsyncClient(base_url=broker.url, timeout=20) as http:
        yield Scene(broker, http)


async def reached(scene: Scene, generation: str, seq: int) -> bool:
    return await scene.seq(generation) >= seq


def head(method: str, target: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: b", *headers, "", ""]).encode()


def socket(scene: Scene, generation: str) -> connect:
    return connect(f"ws://{HOST}:{scene.broker.port}{generation}/upload?format=text", compression=None)
