"""The open loop tells of a stall as those see it who would have sent meanwhile; the closed loop does not."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from benchmarks import load, open_loop
from benchmarks.percentiles import latencies
from benchmarks.server import free_port
from benchmarks.workload import Batches, Invalid

STALL_S = 1.0


@contextmanager
def stalling_server(stall_after: int, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> Iterator[int]:
    """Answers at once, but for STALL_S after so many requests, when it does nothing at all."""
    port, ready = free_port(), threading.Event()
    loop = asyncio.new_event_loop()
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Len"))
            await reader.readexactly(length)
            answered += 1
            if answered == stall_after:
                time.sleep(STALL_S)  # noqa: ASYNC251 -- it is the whole server that stalls
            writer.write(answer)

    async def run() -> None:
        def ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, object]) -> None:
            """Connections are cut at the end."""

        loop.set_exception_handler(ignore)
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        ready.set()
        await server.serve_forever()

    def main() -> None:
        asyncio.set_event_loop(loop)
        task.append(loop.create_task(run()))
        loop.run_until_complete(asyncio.wait(task))
        others = asyncio.all_tasks(loop)
        for other in others:
            other.cancel()
        loop.run_until_complete(asyncio.gather(*others, return_exceptions=True))
        loop.close()

    task: list[asyncio.Task[None]] = []
    thread = threading.Thread(target=main)
    thread.start()
    assert ready.wait(10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(task[0].cancel)
        thread.join(10)


def batches(connections: int) -> list[Batches]:
    return [Batches("/stream", 1) for _ in range(connections)]


def test_server_that_stalls_a_second_shows_in_the_p99_of_the_open_loop() -> None:
    """100 requests a second over two seconds: half of them are due while nothing is answered, or soon after."""
    with stalling_server(stall_after=50) as port:
        seen = open_loop.run(port, batches(4), per_s=100, warm_up_s=0.0, measured_s=2.0)
    assert seen.ms(99) > 0.8 * STALL_S * 1000
    assert seen.ms(75) > 0.2 * STALL_S * 1000
    assert seen.ms(25) < 0.2 * STALL_S * 1000
    assert seen.count == len(open_loop.arrivals(100, 2.0))


def test_the_same_stall_is_one_slow_request_of_many_in_a_closed_loop() -> None:
    with stalling_server(stall_after=50) as port:
        seen = load.run(port, batches(1), warm_up_s=0.0, measured_s=2.0)
    assert latencies(seen.latencies_s()).ms(99) < 0.2 * STALL_S * 1000


def test_arrivals_are_the_same_for_everyone_and_as_many_as_asked() -> None:
    due = open_loop.arrivals(1000, 10.0)
    assert due == open_loop.arrivals(1000, 10.0)
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert all(first <= second for first, second in pairwise(due))


def test_refused_request_makes_the_run_invalid() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with stalling_server(0, refusal) as port, pytest.raises(Invalid, match="503"):
        open_loop.run(port, batches(1), per_s=100, warm_up_s=0.0, measured_s=0.2)
