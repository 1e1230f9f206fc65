"""`python -m benchmarks.promptness`: how soon people see what was written, from the producer to a view of the session.

The answers are written at the pace of a model and seen over HTTP by a `SessionView`, and the list of sessions by
`Recents`. Producer, view and list run in one process, so one clock times them all. Every answer is followed by one that
somebody else stops, and that a second view comes to in its midst: from the stop's request to the last chunk that the
first view shows, and from opening the second to where it shows all that was durable by then.
"""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import click

from benchmarks import server
from consumer import Recents, SessionView
from producer import Fenced, Generation, Producer

SESSION: Final = "s"
TOKEN_S: Final = 0.02
"""Between two chunks: 50 tokens/s."""
TOKENS: Final = 20
BOUNDS_MS: Final = {
    "first token": 1_000.0,
    "token": math.inf,
    "end": 200.0,
    "recents": 500.0,
    "stop to silence": 200.0,
    "resume": 1_000.0,
}
"""What each may take for 95 in 100."""
SILENT_S: Final = 10 * TOKEN_S
"""An answer of which nothing came for so long after it had ended is silent."""
WAIT_S_MAX: Final = 20.0


@click.command()
@click.option("--answers", default=50, show_default=True, help="Answers that are written, one after another.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the broker keeps its data meanwhile. Default: here.",
)
@click.option("--check", is_flag=True, help="Exit with 1 unless all bounds were kept.")
def main(*, answers: int, data_dir: Path, check: bool) -> None:
    """Measure how soon a view shows the tokens of an answer and its end, and the list of sessions a message."""
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir) as folder:
        took = asyncio.run(_measure(Path(folder), answers))
    kept = True
    for name, took_ms in took.items():
        p50, p95, p99 = (_quantile(took_ms, share) for share in (0.5, 0.95, 0.99))
        kept = kept and p95 <= BOUNDS_MS[name]
        quantiles = f"p50 {p50:6.1f} ms, p95 {p95:6.1f} ms, p99 {p99:6.1f} ms, most {max(took_ms):6.1f} ms"
        print(f"{name:15} {quantiles}, {len(took_ms):,} times")
    if check and not kept:
        sys.exit(1)


def _quantile(values: list[float], share: float) -> float:
    """The smallest value that so many of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


async def _measure(folder: Path, answers: int) -> dict[str, list[float]]:
    port = server.free_port()
    url = f"http://127.0.0.1:{port}"
    with server.running(server.streamfold(port, "sqlite", folder / "data"), port):
        async with Producer(url) as producing:
            await producing.create_session(SESSION)
            async with SessionView(url, SESSION) as view, Recents(url) as recents, anyio.create_task_group() as tasks:
                watch = _Watch(view, recents)
                tasks.start_soon(watch.follow, view)
                tasks.start_soon(watch.follow, recents)
                for number in range(answers):
                    await _turn(producing, watch, number)
                    await _stopped_turn(producing, watch, number, url)
                tasks.cancel_scope.cancel()
    return watch.took_ms


async def _turn(producing: Producer, watch: _Watch, number: int) -> None:
    """A question and its answer."""
    before, asked_s = watch.listed_offset, time.monotonic()
    await producing.send_message(SESSION, {"id": f"q{number}", "role": "user", "text": "?"})
    await watch.until("recents", asked_s, lambda: watch.listed_offset != before)
    async with producing.generation(SESSION, f"g{number}", format="text") as writing:
        for tokens in range(1, TOKENS + 1):
            written_s = time.monotonic()
            await writing.write("x")
            name = "first token" if tokens == 1 else "token"
            await watch.until(name, written_s, partial(watch.shows, f"g{number}", tokens))
            await anyio.sleep(TOKEN_S)
        ended_s = time.monotonic()
        await writing.finish()
        await watch.until("end", ended_s, lambda: watch.is_idle)


async def _stopped_turn(producing: Producer, watch: _Watch, number: int, url: str) -> None:
    """An answer that somebody stops, and that somebody else comes to before."""
    name = f"stopped{number}"
    writing = producing.generation(SESSION, name, format="text")
    with suppress(Fenced):
        async with writing, anyio.create_task_group() as tasks:
            tasks.start_soon(_write_on, writing)
            await watch.until("", time.monotonic(), partial(watch.shows, name, TOKENS // 2))
            await _resume(watch, url, name, writing.durable_chunks)
            asked_s = time.monotonic()
            await producing.stop(SESSION, name)
            await watch.until("", asked_s, lambda: watch.is_idle)
            await anyio.sleep(SILENT_S)
            watch.took_ms["stop to silence"].append(max(0.0, watch.grew_s - asked_s) * 1000)
            tasks.cancel_scope.cancel()


async def _write_on(writing: Generation) -> None:
    """At the pace of a model, until it is stopped."""
    with suppress(Fenced):
        while True:
            await writing.write("x")
            await anyio.sleep(TOKEN_S)


async def _resume(watch: _Watch, url: str, message_id: str, tokens: int) -> None:
    """Open the session as a page that was reloaded does."""
    opened_s = time.monotonic()
    async with SessionView(url, SESSION) as view, aclosing(view.follow()) as changes:
        while _tokens_in(view, message_id) < tokens:
            await anext(changes)
    watch.took_ms["resume"].append((time.monotonic() - opened_s) * 1000)


def _tokens_in(view: SessionView, message_id: str) -> int:
    """How many tokens of one character are in the answer as it is shown."""
    item = view.message(message_id)
    message = None if item is None else item["message"]
    return 0 if message is None else sum(len(part["text"]) for part in message["parts"])


class _Watch:
    """What a view and a list show, and after how many milliseconds they showed what was waited for."""

    def __init__(self, view: SessionView, recents: Recents) -> None:
        self.took_ms: dict[str, list[float]] = {name: [] for name in BOUNDS_MS}
        self.grew_s = 0.0
        """When the view last showed more of an answer than before."""
        self._shown = ("", 0)
        self._view, self._recents = view, recents
        self._changed = anyio.Event()

    async def follow(self, shown: SessionView | Recents) -> None:
        """Wake who waits, with each change."""
        async with aclosing(shown.follow()) as changes:
            async for _ in changes:
                self._note_growth()
                self._changed.set()
                self._changed = anyio.Event()

    def _note_growth(self) -> None:
        messages = self._view.messages
        newest = messages[-1]["id"] if messages else ""
        shown = (newest, _tokens_in(self._view, newest) if newest.startswith("stopped") else 0)
        if shown != self._shown:
            self._shown, self.grew_s = shown, time.monotonic()

    async def until(self, name: str, began_s: float, is_shown: Callable[[], bool]) -> None:
        """Return when it is shown, and note when that was under `name`, if there is one."""
        with anyio.fail_after(WAIT_S_MAX):
            while not is_shown():
                await self._changed.wait()
        if name:
            self.took_ms[name].append((time.monotonic() - began_s) * 1000)

    @property
    def is_idle(self) -> bool:
        return self._view.status == "idle"

    @property
    def listed_offset(self) -> str:
        return self._recents.sessions[0].offset

    def shows(self, message_id: str, tokens: int) -> bool:
        """Whether so many tokens are in the answer as it is shown."""
        return _tokens_in(self._view, message_id) >= tokens


if __name__ == "__main__":
    main()
