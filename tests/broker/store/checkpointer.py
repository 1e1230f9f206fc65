"""A process that writes checkpoints without end, to be killed: `python -m tests.broker.store.checkpointer FOLDER`.

Each checkpoint says its number in all of its parts. Printed are: the number found at the start, then each one written.
"""

import asyncio
import sys
from pathlib import Path

from broker.core.page import json_page
from broker.core.state import Stream, stream_key
from broker.data_dir import DataDir
from broker.store import Checkpoint, Head, Snapshot
from broker.store.sqlite import SqliteStore

INCARNATION = 77
KEYS = 200


def checkpoint(number: int) -> Checkpoint:
    """One record, many rows and a message, all of this number."""
    row = Stream(INCARNATION, "application/json", 0, number, tail=number)
    return Checkpoint(
        head=Head(number, number, b"%d" % number),
        rows={stream_key(f"path {n}"): row for n in range(KEYS)},
        pages=[(INCARNATION, [json_page([b"%d" % number] * 10_000, (number - 1) * 10_000)])],
        ended=[],
        snapshots=[Snapshot("path 0", INCARNATION, number, [(0, "message", b"%d" % number)])],
    )


async def main(path: Path) -> None:
    store = SqliteStore(DataDir(path), wal_bytes=1024 * 1024)
    number = (await store.open()).applied_index
    print(number, flush=True)
    while True:
        number += 1
        await store.write(checkpoint(number))
        print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
