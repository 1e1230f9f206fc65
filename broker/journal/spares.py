"""Spares: segment files that wait to be written over, so that no commit waits for one to be made.

journal/….spare     a segment whose entries the store has, or one that was made beforehand
journal/new.part    one that is being made
"""

from __future__ import annotations

import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from broker.journal.durable import DirectWrite, Write
from broker.limits import KIB, MIB, SEGMENT_SPARES_MAX
from broker.priority import stand_back

_PIECE_BYTES: Final = 256 * KIB
"""Written at once: a commit that comes meanwhile waits for one, not for all."""
_WORTH_A_THREAD_BYTES: Final = 1 * MIB
"""A smaller one is made in a millisecond or two."""


class Spares:
    """Those in `folder`. One thread at a time; what is made beforehand is made in another."""

    def __init__(self, folder: Path, write: Write) -> None:
        self._folder = folder
        self._write = write
        self._making: threading.Thread | None = None

    def foresee(self, size_bytes: int) -> None:
        """Have one of so many bytes made beside, if there is none. When that fails `take` tries again, and tells."""
        if self._making is not None or size_bytes < _WORTH_A_THREAD_BYTES:
            return
        with suppress(OSError, RuntimeError):  # the second: no more threads
            if self._fitting(size_bytes) is None:
                making = threading.Thread(target=self._make_beside, args=(size_bytes,), name="spare", daemon=True)
                making.start()
                self._making = making

    def take(self, size_bytes: int) -> Path:
        """A file of at least so many bytes, all of them on the disk, for the caller to rename. Raises OSError."""
        self.settle()
        return self._fitting(size_bytes) or self._make(size_bytes, self._write)

    def keep(self, path: Path) -> None:
        """Have a segment that is not needed any more for the next one, or remove it. Raises OSError."""
        if len(self._all()) < SEGMENT_SPARES_MAX:
            path.replace(path.with_suffix(".spare"))
        else:
            path.unlink()

    def settle(self) -> None:
        """Wait for one that is being made."""
        if self._making is not None:
            self._making.join()
            self._making = None

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("*.spare"))

    def _fitting(self, size_bytes: int) -> Path | None:
        return next((path for path in self._all() if path.stat().st_size >= size_bytes), None)

    def _make_beside(self, size_bytes: int) -> None:
        stand_back()
        with suppress(OSError):
            self._make(size_bytes, DirectWrite())

    def _make(self, size_bytes: int, write: Write) -> Path:
        part = self._folder / "new.part"
        try:
            with FileIO(part, "w") as file:
                for at in range(0, size_bytes, _PIECE_BYTES):
                    write(file, bytes(min(_PIECE_BYTES, size_bytes - at)), at)
            return part.replace(part.with_suffix(".spare"))
        except OSError:
            part.unlink(missing_ok=True)
            raise
