"""An application whose answers are settled, and that can be killed meanwhile: `settling_app URL SPOOL HOW`.

HOW is `hanging` or `working`. Writes one answer through its spool, unless it has done so already, and prints the id of
each generation that it is asked to settle. A line on its standard input ends it.
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from producer import Ended, Finished, Producer


async def main(url: str, spool: Path, how: str) -> None:
    async def settle(ended: Ended) -> None:
        print(ended.generation_id, ended.status, flush=True)
        if how == "hanging":
            await asyncio.Event().wait()

    async with Producer(url, spool=spool, settle=settle) as producer:
        with suppress(Finished):
            async with producer.spooled("killed", "g", format="text") as generation:
                await generation.write("an answer")
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
