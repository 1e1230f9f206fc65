"""One of two applications that take themselves for the only one: `python -m tests.faults.twin_app URL KIND NAME COUNT`.

KIND is `generation` or `stream`; both write under the same ids. Waits for a line before it writes, so that both begin
together, and prints how it ended: `whole`, or the code or the name of the error that it was told.
"""

import asyncio
import sys

from producer import ClientError, Limits, Producer, Refused

LIMITS = Limits(batch_chunks_max=5, linger_ms=0, backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02)


async def main(url: str, kind: str, name: str, count: int) -> None:
    async with Producer(url, limits=LIMITS) as producer:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        try:
            await (write_answer if kind == "generation" else write_stream)(producer, name, count)
        except Refused as refusal:
            print(refusal.code, flush=True)
        except ClientError as error:
            print(type(error).__name__, flush=True)
        else:
            print("whole", flush=True)


async def write_answer(producer: Producer, name: str, count: int) -> None:
    async with producer.generation("twins", "g", format="text") as generation:
        for n in range(count):
            await generation.write(f"{name} {n}")


async def write_stream(producer: Producer, name: str, count: int) -> None:
    async with producer.streams.producer("twins", "p") as writing:
        for n in range(count):
            await writing.append(f"{name} {n}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
