"""The snapshots of one partition at their place: made, listed and checked. In threads; none of this is quick."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from broker import limits
from broker.snapshot import Place
from broker.snapshot.form import Facts, Name, Unusable, decode, encode, name_of

log = logging.getLogger("streamfold.snapshot")


class Shelf:
    """What a `Place` has of one partition. Its methods block, and raise OSError when the place does not answer."""

    def __init__(self, place: Place, bytes_per_s: float = limits.SNAPSHOT_BYTES_PER_S) -> None:
        self._place = place
        self._bytes_per_s = bytes_per_s
        self._stopping = threading.Event()
        self.damaged = 0
        """How many were found that cannot be used."""

    def __str__(self) -> str:
        return str(self._place)

    def stop(self) -> None:
        """End what is under way in other threads, with an OSError."""
        self._stopping.set()

    def newest_first(self, log_uuid: bytes | None) -> list[Name]:
        """Those of this log, whole or not; of all logs when its uuid is None."""
        found = (name for text in self._place.names() if (name := name_of(text)) is not None)
        return sorted((name for name in found if log_uuid in (None, name.log_uuid)), reverse=True)

    def facts(self, name: Name) -> Facts:
        """What it says of itself, unchecked. Raises Unusable."""
        for facts in self._decoded(name):
            if isinstance(facts, Facts):
                return facts
        raise Unusable("it is damaged: it has no facts")

    def put(self, name: Name, facts: Facts, store: Path) -> None:
        """Keep the store in that file as a snapshot."""
        self._place.write(str(name), encode(facts, self._paced(_pieces(store))))

    def check(self, name: Name, keep: Path | None = None) -> Facts:
        """Read all of it, into `keep` if that is given: it is what was put. Raises Unusable."""
        facts: Facts | None = None
        with contextlib.ExitStack() as stack:
            kept = None if keep is None else stack.enter_context(keep.open("wb"))
            for piece in self._decoded(name):
                if isinstance(piece, Facts):
                    facts = piece
                elif kept is not None:
                    kept.write(piece)
        if facts is None or (facts.position, facts.log_uuid) != name[:2]:
            raise Unusable("it is damaged: it is not what its name says")
        return facts

    def good(self, log_uuid: bytes, count: int, but: Collection[Name] = ()) -> list[tuple[Name, Facts]]:
        """The newest that are whole, at most so many, read to their last byte; none of those in `but`."""
        found: list[tuple[Name, Facts]] = []
        for name in self.newest_first(log_uuid):
            if len(found) < count and name not in but:
                with self.told(name):
                    found.append((name, self.check(name)))
        return found

    def remove(self, name: Name) -> None:
        """Let go of one."""
        self._place.remove(str(name))

    @contextlib.contextmanager
    def told(self, name: Name) -> Iterator[None]:
        """Go on without a snapshot that cannot be used, and tell the operator."""
        try:
            yield
        except (Unusable, FileNotFoundError) as error:
            self.damaged += 1
            log.warning("the snapshot %s in %s is not used: %s", name, self, error)

    def _decoded(self, name: Name) -> Iterator[bytes | Facts]:
        return decode(self._paced(self._place.read(str(name))))

    def _paced(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """No faster than others at the same disk and network can bear."""
        began, size_bytes = time.monotonic(), 0
        for piece in pieces:
            size_bytes += len(piece)
            ahead_s = size_bytes / self._bytes_per_s - (time.monotonic() - began)
            if self._stopping.wait(max(0.0, ahead_s)):
                raise InterruptedError("the broker stops")
            yield piece


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(limits.SNAPSHOT_PIECE_BYTES):
            yield piece
