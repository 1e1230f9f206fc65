"""The place of the simulation's snapshots: all nodes reach it, sometimes; what lies there may rot."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from random import Random

from broker.snapshot.form import name_of
from tests.simulator.loop import Loop

PIECE_BYTES = 10_000


class SharedPlace:
    """A `Place`, in memory."""

    def __init__(self, loop: Loop, rng: Random, log_bytes: int) -> None:
        self.log_bytes = log_bytes
        """Of log, after which a snapshot is due."""
        self.fails = False
        """Whether it can be reached."""
        self.parted: Callable[[int], int | None] = lambda _: None
        """Where the store of a boot parts from the log, if it has what the log has lost."""
        self.parts_at: dict[str, int] = {}
        """The same, of snapshots."""
        self._loop, self._rng = loop, rng
        self._kept: dict[str, bytes] = {}
        self._whole: set[str] = set()
        self._proven_at: dict[str, float] = {}  # when somebody last read all of it, and it was whole

    def __str__(self) -> str:
        return "the place"

    def names(self) -> list[str]:
        self._reach()
        return sorted(self._kept)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        self._reach()
        pieces = []
        for chunk in chunks:
            pieces.append(chunk)
            if self._rng.random() < 0.02:
                raise OSError(errno.EIO, "the connection to the place is gone")
        self._kept[name] = b"".join(pieces)
        self._whole.add(name)
        made = name_of(name)
        if made is not None:
            self._note_loss(name, self.parted(made.boot))

    def lose(self, position: int) -> None:
        """The log has lost what it had from `position` on."""
        for name in self._whole:
            self._note_loss(name, position)

    def _note_loss(self, name: str, parts_at: int | None) -> None:
        known = name_of(name)
        if known is not None and parts_at is not None and known.position > parts_at:
            self.parts_at[name] = min(parts_at, self.parts_at.get(name, parts_at))

    def read(self, name: str) -> Iterator[bytes]:
        self._reach()
        if name not in self._kept:
            raise FileNotFoundError(errno.ENOENT, "there is no such snapshot", name)
        data = self._kept[name]
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]
        if name in self._whole:
            self._proven_at[name] = self._loop.time()

    def remove(self, name: str) -> None:
        self._reach()
        self._kept.pop(name, None)
        self._whole.discard(name)

    def proven_positions(self, within_s: float) -> list[int]:
        """Of the snapshots of this log that were read of late, and were as they had been written; newest first."""
        since = self._loop.time() - within_s
        proven = [name for name, at in self._proven_at.items() if at >= since and name not in self.parts_at]
        names = map(name_of, proven)
        return sorted((name.position for name in names if name is not None), reverse=True)

    @property
    def oldest(self) -> int:
        """Where the oldest snapshot of this log ends that is whole."""
        whole = map(name_of, self._whole - self.parts_at.keys())
        return min((name.position for name in whole if name is not None), default=0)

    def damage(self) -> str:
        """One of several that are whole is so no more; which, or "" when there would be none left."""
        whole = self._whole - self.parts_at.keys()
        if len(whole) < 2:
            return ""
        name = self._rng.choice(sorted(whole))
        self._whole.discard(name)
        data, at = self._kept[name], self._rng.randrange(len(self._kept[name]))
        if self._rng.random() < 0.5:
            self._kept[name] = data[:at]
        else:
            self._kept[name] = data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]
        return name

    def _reach(self) -> None:
        if self.fails:
            raise OSError(errno.ESTALE, "the place does not answer")
