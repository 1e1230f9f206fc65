"""`/v1/admin`: what an operator changes while a broker runs, by request and by signal."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.broker.http.asgi import broker
from tests.eventually import eventually
from tests.live import Broker

DURABILITY = "/v1/admin/durability"
JSON = {"content-type": "application/json"}


async def test_switch_is_told_set_and_taken_back() -> None:
    async with broker() as client:
        assert (await client.get(DURABILITY)).json == {"synchronous": False, "durability": "memory"}
        for synchronous in (True, False):
            body = b'{"synchronous":true}' if synchronous else b'{"synchronous":false}'
            assert (await client.send("PUT", DURABILITY, body, JSON)).json["synchronous"] is synchronous
            assert (await client.get(DURABILITY)).json["synchronous"] is synchronous
            assert (
                f"streamfold_synchronous_commits {float(synchronous)}".encode() in (await client.get("/metrics")).body
            )


@pytest.mark.parametrize("body", [b"", b"{}", b"1", b'{"synchronous":1}', b'{"synchronous":true,"x":1}', b"\xff"])
async def test_bad_switch_changes_nothing(body: bytes) -> None:
    async with broker() as client:
        answer = await client.send("PUT", DURABILITY, body, JSON)
        assert (answer.status, answer.code) == (400, "INVALID_BODY")
        assert not (await client.get(DURABILITY)).json["synchronous"]


async def commits_of_20_appends(client: httpx.AsyncClient) -> float:
    async def commits() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return float(next(line for line in lines if line.startswith("streamfold_commits_total")).split()[1])

    before = await commits()
    body = b"\n".join(b"%d" % n for n in range(20))
    headers = {"content-type": "application/x-ndjson", "producer-seq": "0"}
    answer = await client.post(f"/v1/sessions/s/generations/g{before}/chunks", content=body, headers=headers)
    assert answer.status_code == 200
    return await commits() - before


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on Windows")
async def test_signals_switch_too_and_at_once(tmp_path: Path) -> None:
    async with Broker(tmp_path / "data") as live, httpx.AsyncClient(base_url=live.url) as client:
        await client.put("/v1/sessions/s")

        async def told() -> Any:
            return (await client.get(DURABILITY)).json()["synchronous"]

        async def not_told() -> bool:
            return not await told()

        assert await commits_of_20_appends(client) < 20
        os.kill(live.pid, signal.SIGUSR1)
        await eventually(told)
        assert await commits_of_20_appends(client) == 20
        os.kill(live.pid, signal.SIGUSR2)
        await eventually(not_told)
        assert await commits_of_20_appends(client) < 20
