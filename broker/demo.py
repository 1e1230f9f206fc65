"""`streamfold demo`: recorded answers survive a killed broker and a dropped reader, before one's eyes.

A broker, a reader that follows it (`streamfold tail`) and the producer, which is this process: the first two get
killed. What is printed, and counted at the end, is what the reader saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import click

from consumer import Reader
from consumer.plain import decode
from producer import Producer

SESSION: Final = "demo"
ANSWERS: Final = 6
STARTUP_S_MAX: Final = 15.0
POLL_S: Final = 0.02
CATCH_UP_S_MAX: Final = 30.0
DOWN_S: Final = 0.6
"""How long the broker stays dead: long enough to see that the answer stalls, and that the producer waits."""
LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_PORTS_TRIED_MAX: Final = 100
_OTHER: Final = "·"


@click.command()
@click.argument("recordings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--chunks-per-second", "pace", default=25.0, show_default=True, help="Token cadence.")
def demo(recordings: Path, pace: float) -> None:
    """Play the recorded answers of RECORDINGS (NDJSON of AI SDK chunks) through a broker that gets killed.

    Exit status 0 only if the reader saw every chunk once and in order.
    """
    answers = _longest(recordings.read_bytes().splitlines())
    with tempfile.TemporaryDirectory(prefix="streamfold-demo-") as data_dir:
        sys.exit(asyncio.run(_play(answers, data_dir, pace)))


def _longest(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The longest recordings of answers in which nothing went wrong."""
    answers = [json.loads(line) for line in lines]
    sound = [answer for answer in answers if not answer.get("errors") and "initial" not in answer]
    return sorted(sound, key=lambda answer: -len(answer["chunks"]))[:ANSWERS]


async def _play(answers: Sequence[dict[str, Any]], data_dir: str, pace: float) -> int:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(_Broker(data_dir))
        producer = await stack.enter_async_context(Producer(broker.url))
        await producer.create_session(SESSION)
        reader = await stack.enter_async_context(_Follower(broker.url))
        _say(f"broker {broker.pid} at {broker.url}, producer {os.getpid()}; below is what reader {reader.pid} gets:")
        _say(f"text bright, reasoning and tool input dim, {_OTHER} for every other chunk")
        sent: list[tuple[str, Any]] = []
        faults: dict[int, Callable[[], Coroutine[Any, Any, None]]] = {
            len(answers) // 3: partial(_kill_broker, broker),
            2 * len(answers) // 3: partial(_drop_reader, reader),
        }
        for number, answer in enumerate(answers):
            await _write_answer(producer, f"answer-{number + 1}", answer["chunks"], sent, faults.get(number), pace)
        await reader.wait_for(len(sent))
        return await _report(broker.url, sent, reader.seen)


async def _write_answer(
    producer: Producer,
    generation_id: str,
    chunks: Sequence[Any],
    sent: list[tuple[str, Any]],
    fault: Callable[[], Coroutine[Any, Any, None]] | None,
    pace: float,
) -> None:
    """One generation, chunk by chunk at token cadence; the fault strikes in the middle of it."""
    async with producer.generation(SESSION, generation_id) as generation:
        striking: asyncio.Task[None] | None = None
        for number, chunk in enumerate(chunks):
            await generation.write(chunk)
            sent.append((f"{generation_id}:{number}", chunk))
            if fault is not None and number == len(chunks) // 2:
                striking = asyncio.create_task(fault())
            await asyncio.sleep(1 / pace)
        if striking is not None:
            await striking


async def _kill_broker(broker: _Broker) -> None:
    _say(f"\nSIGKILL for broker {broker.pid}, mid-answer", fg="red")
    await broker.kill()
    await asyncio.sleep(DOWN_S)
    started = time.monotonic()
    await broker.start()
    _say(f"broker {broker.pid} is back after {DOWN_S + time.monotonic() - started:.1f} s", fg="green")


async def _drop_reader(reader: _Follower) -> None:
    _say(f"\nSIGKILL for reader {reader.pid}, mid-answer", fg="red")
    await reader.kill()
    await asyncio.sleep(DOWN_S)
    await reader.start()
    _say(f"reader {reader.pid} resumes at offset {reader.offset}", fg="green")


class _Broker:
    """`streamfold serve` in a process of its own, on one port and one data folder for all its lives."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        arguments = ("serve", "--port", str(self._port), "--data-dir", self._data_dir)
        self._process = await _streamfold(*arguments, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(STARTUP_S_MAX):
                while not await self._listens():  # noqa: ASYNC110 -- another process cannot set an event of ours
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise click.ClickException("the broker does not start") from None

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def _listens(self) -> bool:
        if self._process.returncode is not None:
            raise click.ClickException(f"the broker ended with status {self._process.returncode}")
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.close()
            return True
        return False


class _Follower:
    """`streamfold tail` in a process of its own. Another one takes over at the offset that the last one reached."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.offset = "-1"
        self.seen: list[tuple[str, Any]] = []  # (key, chunk) in the order of arrival
        self._moved = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        arguments = ("tail", f"sessions/{SESSION}", "--json", "--offset", self.offset, "--url", self._url)
        self._process = await _streamfold(*arguments, stdout=asyncio.subprocess.PIPE)
        self._taking = asyncio.create_task(self._take())

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._taking
        await self._process.wait()

    async def wait_for(self, count: int) -> None:
        """Until so many chunks have come, or none will: then the report says what is missing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S_MAX), self._moved:
                await self._moved.wait_for(lambda: len(self.seen) >= count)

    async def _take(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):  # cut by the kill: it was not received
                return
            batch: Any = decode(line)
            async with self._moved:
                for record in batch["records"]:
                    self._take_record(record)
                self.offset = batch["nextOffset"]
                self._moved.notify_all()

    def _take_record(self, record: dict[str, Any]) -> None:
        if record["type"] == "chunk":
            chunk = record["value"]["chunk"]
            self.seen.append((record["key"], chunk))
            _show(chunk)
        elif record["type"] == "generation":
            _say(f"\n{record['key']}: {record['value']['status']}", fg="cyan")


async def _streamfold(*arguments: str, stdout: int) -> asyncio.subprocess.Process:
    program = "from broker.cli import main; main()"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdout=stdout, limit=LINE_BYTES_MAX
    )


def _free_port() -> int:
    """From below those that the system gives to outgoing connections.

    Else a client that knocks while the broker is dead could be given that very port, and be connected to itself.
    """
    for _ in range(_PORTS_TRIED_MAX):
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise click.ClickException("no free port found from 20000 to 32000")


def _show(chunk: Any) -> None:
    """The text of a chunk as it comes; what has none leaves a dot."""
    match chunk:
        case {"type": "text-delta", "delta": str(delta)}:
            click.echo(_printable(delta), nl=False)
        case {"type": "reasoning-delta", "delta": str(delta)} | {"inputTextDelta": str(delta)}:
            click.secho(_printable(delta), nl=False, dim=True)
        case _:
            click.secho(_OTHER, nl=False, dim=True)


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _say(text: str, fg: str | None = None) -> None:
    click.secho(text, fg=fg)


async def _report(url: str, sent: Sequence[tuple[str, Any]], seen: Sequence[tuple[str, Any]]) -> int:
    """Print the folded messages and the count; the exit status."""
    async with Reader(url) as reader:
        snapshot = await reader.messages(SESSION)
    _say("\nthe messages, folded by the broker:")
    for item in snapshot.messages:
        parts = item["message"]["parts"]
        text = "".join(part.get("text", "") for part in parts if part["type"] == "text")
        kinds = Counter(part["type"].partition("-")[0] for part in parts)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        click.echo(f"  {item['id']:9} {click.style(item['status'], fg='green'):17} {_printable(text)!r} ({told})")
    lost, doubled, reordered = count_faults(sent, seen)
    whole = not (lost or doubled or reordered) and all(item["status"] == "complete" for item in snapshot.messages)
    summary = f"chunks sent {len(sent)}, lost {lost}, doubled {doubled}, reordered {reordered}"
    _say(summary, fg="green" if whole else "red")
    return 0 if whole else 1


def count_faults(sent: Sequence[tuple[str, Any]], seen: Sequence[tuple[str, Any]]) -> tuple[int, int, int]:
    """How many chunks (key, content) were lost, doubled and reordered between `sent` and `seen`.

    One that arrived with other content, or that nobody sent, counts as lost: it is not what was sent.
    """
    content = dict(sent)
    place = {key: number for number, (key, _) in enumerate(sent)}
    times = Counter(key for key, _ in seen)
    intact = {key for key, chunk in seen if key in content and content[key] == chunk}
    altered = {key for key, chunk in seen if key not in content or content[key] != chunk}
    lost = len(content.keys() - intact | altered)
    doubled = sum(count - 1 for count in times.values())
    places = [place[key] for key, _ in seen if key in place]
    reordered = sum(1 for earlier, later in pairwise(places) if later < earlier)
    return lost, doubled, reordered
