"""A process that proposes without end, to be killed: `python -m tests.broker.journal.proposer FOLDER`.

It prints the number of the last proposal that was handed back, again and again. Before that it prints how many entries
the journal held, which must be all that was printed so far and perhaps more.
"""

import asyncio
import sys
from pathlib import Path

from broker.core.entry import Entry, Kind
from broker.data_dir import DataDir
from broker.journal import Commit, Refused
from broker.journal.file import FileJournal
from tests.broker.journal.bench import UUID


async def main(path: Path) -> None:
    data_dir = DataDir(path)
    data_dir.take()
    data_dir.uuid = UUID
    journal = FileJournal(data_dir, segment_bytes=64 * 1024)
    await journal.open(0, 0)
    proposal = 0
    async for commit in journal.replay():
        for entry in commit.entries:
            proposal += 1
            assert entry.proposal == proposal
    print(proposal, flush=True)
    room = asyncio.Semaphore(64)

    def deliver(told: Commit | Refused) -> None:
        print(told.entries[-1].proposal, flush=True)
        for _ in told.entries:
            room.release()

    journal.start(deliver, lambda error: sys.exit(repr(error)))
    while True:
        await room.acquire()
        proposal += 1
        journal.propose(Entry(Kind.APPEND, "a/path", proposal=proposal, body=b"x" * (proposal * 37 % 3000)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
