"""An application that writes a long answer through a spool, and can be killed: `python -m tests.producer.spooling_app`.

Started again it goes on where it was. Prints what it has kept when it starts, then the number of each chunk when
`write` has returned, `finished`, and `delivered` at the end. A line `full` says that the spool had no room for a chunk,
which is then written again. After a kill behind `finished` there is nothing left to write: it delivers.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from producer import Finished, Limits, Producer, SpooledGeneration, SpoolFull
from tests.program import program

LIMITS = Limits(backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02, finish_timeout_s=1.0)


def text_of(n: int) -> str:
    return f"{n} "


@contextmanager
def app(
    url: str,
    spool: Path,
    chunks: int,
    *,
    pad: int = 0,
    session_id: str = "s",
    lease_ms: int = 5000,
    enter: tuple[str, ...] = (),
) -> Iterator[Any]:
    """The application in a process, which is killed when the context is left."""
    given = (url, spool, chunks, pad, session_id, lease_ms)
    with program("tests.producer.spooling_app", *given, enter=enter) as process:
        yield process


async def main(url: str, spool: Path, chunks: int, pad: int, session_id: str, lease_ms: int) -> None:
    async with Producer(url, limits=LIMITS, spool=spool) as producer:
        with suppress(Finished):
            async with producer.spooled(session_id, "g", format="text", lease_ms=lease_ms) as generation:
                print("kept", generation.written_chunks, flush=True)
                for n in range(generation.written_chunks, chunks):
                    await write(generation, text_of(n) + "x" * pad)
                    print(n, flush=True)
                await generation.finish()
                print("finished", flush=True)
        await producer.outbox.drained(40)
        print("delivered", flush=True)


async def write(generation: SpooledGeneration, text: str) -> None:
    while True:
        try:
            await generation.write(text)
        except SpoolFull:
            print("full", flush=True)
            await asyncio.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    broker_url, path, count, more_bytes, session, lease = sys.argv[1:]
    asyncio.run(main(broker_url, Path(path), int(count), int(more_bytes), session, int(lease)))
