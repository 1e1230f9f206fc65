"""A program that writes one answer from its first chunk and can be killed at any moment: run it again and it goes on.

    writer.py URL SESSION GENERATION COUNT PROGRESS

PROGRESS gets a line for each chunk that is written anew.
"""

import sys
from pathlib import Path

import anyio

from producer import Limits, Producer


async def main() -> None:
    """Write it; see the module."""
    url, session_id, generation_id, count, progress = sys.argv[1:]
    async with (
        Producer(url, limits=Limits(batch_chunks_max=3)) as producer,
        producer.generation(session_id, generation_id, resume=True) as generation,
    ):
        durable = generation.durable_chunks
        with Path(progress).open("w", buffering=1) as lines:
            for number in range(int(count)):
                await generation.write({"type": "text-delta", "id": "0", "delta": f"{number} "})
                if number >= durable:
                    print(number, file=lines)
                    await anyio.sleep(0.005)  # the pace of a model


if __name__ == "__main__":
    anyio.run(main)
