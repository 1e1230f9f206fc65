"""An application that writes a long answer through a spool, and can be killed: `python -m tests.producer.spooling_app`.

Started again it goes on where it was. Prints what it has kept when it starts, then the number of each chunk when
`write` has returned, and `delivered` at the end. A line `full` says that the spool had no room for a chunk,
which is then written again.
"""

import asyncio
import sys
from pathlib import Path

from producer import Limits, Producer, SpooledGeneration, SpoolFull


def text_of(n: int) -> str:
    return f"{n} "


async def main(url: str, spool: Path, chunks: int, pad: int) -> None:
    limits = Limits(backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02, finish_timeout_s=1.0)
    async with (
        Producer(url, limits=limits, spool=spool) as producer,
        producer.spooled("s", "g", format="text", lease_ms=5000) as generation,
    ):
        print("kept", generation.written_chunks, flush=True)
        for n in range(generation.written_chunks, chunks):
            await write(generation, text_of(n) + "x" * pad)
            print(n, flush=True)
        await generation.finish()
        print("finished", flush=True)
        await generation.delivered(40)
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
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
