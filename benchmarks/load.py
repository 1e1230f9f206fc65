"""A closed loop of POSTs: every connection sends its next batch when the one before is answered.

Requests are made beforehand and answers are looked at only as far as it takes to know that they are a 2xx and whole, so
that on one core the load costs less than any server in Python does on the other: the server is what is measured. The
report shows how busy both were, and what `wrk` gets out of the same server.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import Final, cast

import uvloop

from benchmarks.workload import Batches, Invalid

ANSWER_S_MAX: Final = 10.0
"""How long after the end of a run an answer may take."""

_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"


class Load:
    """What one run saw."""

    def __init__(self, warm_up_s: float, measured_s: float) -> None:
        # All three in seconds of `time.perf_counter`; of request i, ended_s[i] and took_s[i].
        self.from_s = time.perf_counter() + warm_up_s
        self.until_s = self.from_s + measured_s
        self.ended_s = array("d")
        self.took_s = array("d")
        self.acknowledged: list[int] = []
        """Batches that each connection has had acknowledged, over the whole run."""

    def latencies_s(self) -> list[float]:
        """Of the requests that ended while it was measured, ascending."""
        return sorted(
            took_s
            for ended_s, took_s in zip(self.ended_s, self.took_s, strict=True)
            if self.from_s <= ended_s < self.until_s
        )


class _Connection(asyncio.Protocol):
    """One connection, and at most one request in it. `done` gets the number of batches acknowledged, or Invalid."""

    _transport: asyncio.WriteTransport

    def __init__(self, batches: Batches, load: Load, done: asyncio.Future[int]) -> None:
        self._batches = batches
        self._load = load
        self.done = done
        self._number = batches.first
        self._sent_s = 0.0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one without saying so
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(Invalid(f"the server closed a connection: {exc}"))

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        if not is_whole(data):
            self._received = data
            return
        self._received = b""
        now_s = time.perf_counter()
        if data[9:10] != b"2":
            self.done.set_exception(Invalid(f"batch {self._number} got {data[:1000].decode(errors='replace')}"))
            self._transport.abort()
            return
        self._number += 1
        self._load.ended_s.append(now_s)
        self._load.took_s.append(now_s - self._sent_s)
        if now_s < self._load.until_s:
            self._send()
        else:
            self.done.set_result(self._number - self._batches.first)
            self._transport.close()

    def _send(self) -> None:
        parts = self._batches.request(self._number)
        self._sent_s = time.perf_counter()
        self._transport.writelines(parts)


def is_whole(answer: bytes) -> bool:
    """Whether nothing of `answer` is still to come. A 204 has no body; any other answer must tell its length."""
    head = answer.find(_END_OF_HEAD)
    if head < 0:
        return False
    if answer.startswith(b"HTTP/1.1 204"):
        return True
    at = answer.lower().find(_LENGTH, 0, head)
    length = int(answer[at + len(_LENGTH) : answer.index(b"\r\n", at + 2)]) if at >= 0 else 0
    return len(answer) >= head + len(_END_OF_HEAD) + length


def run(
    port: int,
    batches: list[Batches],
    *,
    warm_up_s: float,
    measured_s: float,
    measuring: Callable[[], None] = lambda: None,
) -> Load:
    """Load the server at `port`, from one connection for each of `batches`. `measuring` is called after the warm-up.

    Raises Invalid when anything but a 2xx comes back, or nothing.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(offer(port, batches, warm_up_s=warm_up_s, measured_s=measured_s, measuring=measuring))


async def offer(
    port: int,
    batches: list[Batches],
    *,
    warm_up_s: float,
    measured_s: float,
    measuring: Callable[[], None] = lambda: None,
) -> Load:
    """As `run`, in an event loop that others share."""
    loop = asyncio.get_running_loop()
    load = Load(warm_up_s, measured_s)
    loop.call_later(warm_up_s, measuring)
    connections = [_Connection(of_one, load, loop.create_future()) for of_one in batches]
    for connection in connections:
        await _connect(connection, port)
    try:
        async with asyncio.timeout(warm_up_s + measured_s + ANSWER_S_MAX):
            load.acknowledged = await asyncio.gather(*(connection.done for connection in connections))
    except TimeoutError:
        raise Invalid(f"a request was not answered within {ANSWER_S_MAX} s") from None
    return load


async def _connect(connection: _Connection, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
