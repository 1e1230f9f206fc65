"""Open-loop load: requests go out when they are due, whether or not the ones before were answered.

A closed loop waits while a server stalls, and so measures one slow request where a hundred people would have waited
(coordinated omission). Here each request has its time beforehand, at random as independent people send; its latency
counts from then, the wait for a free connection and our own lateness included.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

import uvloop

from benchmarks.load import is_whole
from benchmarks.percentiles import Latencies
from benchmarks.workload import Batches, Invalid

ANSWER_S_MAX: Final = 20.0
"""How long after the last was due the answers may take; then the server does not carry this load."""


def arrivals(per_s: float, seconds: float, seed: int = 1) -> array[float]:
    """When requests are due, in seconds from the start: a Poisson process, the same for everyone."""
    chance, due, at_s = random.Random(seed), array("d"), 0.0
    while True:
        at_s += chance.expovariate(per_s)
        if at_s >= seconds:
            return due
        due.append(at_s)


class _Connection(asyncio.Protocol):
    """One connection, and at most one request in it."""

    _transport: asyncio.WriteTransport

    def __init__(self, batches: Batches, load: _Load) -> None:
        self._batches = batches
        self._number = batches.first
        self._load = load
        self._due_s = 0.0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one without saying so

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(f"the server closed a connection: {exc}")

    def send(self, due_s: float) -> None:
        self._due_s = due_s
        self._transport.writelines(self._batches.request(self._number))
        self._number += 1

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        if not is_whole(data):
            self._received = data
            return
        self._received = b""
        if data[9:10] != b"2":
            self._load.fail(f"a request got {data[:300].decode(errors='replace')}")
            return
        self._load.answered(self, self._due_s)

    def close(self) -> None:
        self._transport.abort()


class _Load:
    """Hands out what is due to connections that are free, and keeps the rest waiting, oldest first."""

    def __init__(self, due: array[float], warm_up_s: float) -> None:
        self.latencies = Latencies()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._due = due
        self._warm_up_s = warm_up_s
        self._free: deque[_Connection] = deque()
        self._next = self._answered = 0
        self._begun_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connections: Sequence[_Connection]) -> None:
        self._free.extend(connections)
        self._begun_s = time.perf_counter()
        self._send_due()

    def answered(self, connection: _Connection, due_s: float) -> None:
        if due_s >= self._warm_up_s:
            self.latencies.record(time.perf_counter() - self._begun_s - due_s)
        self._answered += 1
        self._free.append(connection)
        if self._answered == len(self._due):
            self._finish(None)
        else:
            self._send_due()

    def fail(self, reason: str) -> None:
        self._finish(Invalid(reason))

    def _send_due(self) -> None:
        now_s, due, free = time.perf_counter() - self._begun_s, self._due, self._free
        while free and self._next < len(due) and due[self._next] <= now_s:
            free.popleft().send(due[self._next])
            self._next += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if free and self._next < len(due):
            wait_s = max(0.0, due[self._next] - now_s)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._send_due)

    def _finish(self, error: Invalid | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


def run(port: int, batches: list[Batches], *, per_s: float, warm_up_s: float, measured_s: float) -> Latencies:
    """Offer so many requests a second, over one connection for each of `batches`; how long they took from when due.

    Raises Invalid when anything but a 2xx comes back, or the server is so far behind that answers are missing long
    after the end.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(port, batches, arrivals(per_s, warm_up_s + measured_s), warm_up_s))


async def _run(port: int, batches: list[Batches], due: array[float], warm_up_s: float) -> Latencies:
    loop = asyncio.get_running_loop()
    load = _Load(due, warm_up_s)
    connections = [_Connection(of_one, load) for of_one in batches]
    for connection in connections:
        await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)  # type: ignore[misc] # mypy#15459: a lambda with a default
    load.begin(connections)
    try:
        async with asyncio.timeout(due[-1] + ANSWER_S_MAX):
            await load.done
    except TimeoutError:
        raise Invalid(f"answers were missing {ANSWER_S_MAX:g} s after the last request was due") from None
    finally:
        for connection in connections:
            connection.close()
    return load.latencies
