"""The files of a journal, and what a test does to them behind its back."""

from collections.abc import Callable
from pathlib import Path

from broker.core.entry import Entry
from broker.journal import Commit, Journal
from tests.broker.journal.bench import Bench, Heard

FRAME_MAGIC = b"\xf3commit\xf5"


def files(bench: Bench, suffix: str = ".log") -> list[Path]:
    return sorted(bench.data_dir.journal_path.glob(f"*{suffix}"))


def edit(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change a file behind the journal's back."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def replace(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(old)] = new

    return change


async def write(bench: Bench, entries: list[Entry], applied_index: int = 0) -> Heard:
    """Commit `entries` one by one in a journal of its own."""
    journal, heard = await bench.started(applied_index)
    await heard.write(journal, *entries)
    await journal.aclose()
    return heard


async def replayed(journal: Journal) -> list[Commit]:
    return [commit async for commit in journal.replay()]


def pretend_kill(bench: Bench) -> None:
    """Take back what a clean end has written."""
    edit(files(bench)[-1], lambda data: data.__setitem__(slice(at := data.rindex(FRAME_MAGIC), at + 8), bytes(8)))
