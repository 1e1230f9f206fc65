"""`streamfold serve` as a process: what it prints, refuses, and how it leaves."""

import asyncio
import socket
import subprocess
import sys
import sysconfig
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from broker.app import App, create_app
from broker.journal.shared_log import LogLost
from broker.process import opened
from broker.settings import Settings
from tests.live import HOST, Broker, free_port

PROGRAM = Path(sysconfig.get_path("scripts"), "streamfold")
START_S_MAX = 20.0


def refusal(*arguments: str) -> str:
    """What `streamfold serve` says on standard error when it does not start."""
    done = subprocess.run(
        [str(PROGRAM), "serve", *arguments], capture_output=True, text=True, timeout=START_S_MAX, check=False
    )
    assert done.returncode == 1, done
    assert not done.stdout
    return done.stderr


async def test_started_broker_says_what_it_promises_where_it_is_and_where_it_keeps_it(tmp_path: Path) -> None:
    async with Broker(tmp_path / "data") as broker:
        lines = broker.log_text().splitlines()
        assert [line.partition(":")[0] for line in lines[:3]] == ["durability", "url", "data"]
        assert "fsync" in lines[0]
        assert broker.url in lines[1]
        assert str(tmp_path / "data") in lines[2]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.test"])  # noqa: S104 -- it must be refused
def test_address_that_others_reach_is_refused_without_insecure(host: str, tmp_path: Path) -> None:
    said = refusal("--host", host, "--data-dir", str(tmp_path))
    assert "authentication" in said
    assert "--insecure" in said


def test_port_in_use_is_refused_with_a_hint(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        said = refusal("--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path))
    assert "hint:" in said
    assert "--port" in said


async def test_data_folder_in_use_is_refused_with_a_hint(tmp_path: Path) -> None:
    async with Broker(tmp_path / "data"):
        arguments = ("--port", str(free_port()), "--data-dir", str(tmp_path / "data"))
        said = await asyncio.to_thread(refusal, *arguments)
    assert str(tmp_path / "data") in said
    assert "hint:" in said


async def test_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    async with (
        Broker(tmp_path / "data", env={"STREAMFOLD_LONG_POLL_S": "0.05"}) as broker,
        httpx.AsyncClient(base_url=broker.url) as client,
    ):
        await client.put("/v1/stream/a")
        answer = await client.get("/v1/stream/a", params={"offset": "now", "live": "long-poll"}, timeout=10)
        assert answer.status_code == 204


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM on Windows")
async def test_sigterm_ends_live_reads_with_a_hint_and_leaves_nothing_out(tmp_path: Path) -> None:
    async with Broker(tmp_path / "data") as broker:
        async with httpx.AsyncClient(base_url=broker.url, timeout=20) as client:
            await client.put("/v1/stream/a", headers={"content-type": "text/plain"}, content=b"kept")
            async with client.stream("GET", "/v1/stream/a", params={"offset": "now", "live": "sse"}) as response:
                chunks = response.aiter_text()
                assert "upToDate" in await anext(chunks)
                stopping = asyncio.create_task(broker.stop())
                assert "retry:" in "".join([chunk async for chunk in chunks])
                assert await stopping == 0
        await broker.start()
        async with httpx.AsyncClient(base_url=broker.url) as client:
            assert (await client.get("/v1/stream/a")).content == b"kept"


@pytest.mark.parametrize("losses", [0, 2, 3])
async def test_broker_whose_log_is_trimmed_while_it_starts_begins_anew_a_few_times(
    losses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a snapshot that is newer than what was trimmed: there is one by then."""
    apps: list[App] = []

    async def lost() -> None:
        raise LogLost("position 0 is asked for, Kafka has 3 to 5")

    def created(settings: Settings) -> App:
        apps.append(create_app(settings))
        if len(apps) <= losses:
            monkeypatch.setattr(apps[-1].partition, "open", lost)
        return apps[-1]

    monkeypatch.setattr("broker.process.create_app", created)
    async with AsyncExitStack() as stack:
        if losses == 3:
            with pytest.raises(LogLost):
                await opened(Settings(data_dir=tmp_path), stack)
        else:
            app = await opened(Settings(data_dir=tmp_path), stack)
            assert app is apps[losses]
            assert app.partition.healthy
