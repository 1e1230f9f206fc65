"""Chunks in, batches out: when a batch is cut, and what is in it. Pure; the time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from producer.encoding import JSON_ARRAY, Framing
from producer.limits import Limits

__all__ = ["Batch", "Batcher"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels under one seq. Its bytes never change, however often it is sent: the broker compares them."""

    body: bytes
    chunks: int
    content_bytes: int
    """The chunks without what separates them: what they counted for before they were sealed."""
    last: bool = False
    """It ends what it is written to: the finish of a generation, the close of a stream."""


class Batcher:
    """The chunks that have not been sent yet, in the order they were written.

    A batch is due when it is full, when its oldest chunk has waited for `linger_ms`, when somebody asked by `seal`, and
    at once for the first chunk. A due batch that nobody takes goes on growing until it is full.
    """

    def __init__(self, limits: Limits, framing: Framing = JSON_ARRAY) -> None:
        self._framing = framing
        self._linger_s = limits.linger_ms / 1000
        self._bytes_max = limits.batch_bytes_max
        self._chunks_max = limits.batch_chunks_max
        self._sealed: deque[Batch] = deque()
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._open_since_s = 0.0
        self._first = True
        self.bytes = 0
        """Held here, sealed or not: encoded chunks without what separates them."""
        self.chunks = 0

    def add(self, encoded: bytes, now_s: float) -> bool:
        """Take a chunk; True if whoever sends should look again: a batch begins to wait, or is full."""
        if self._open and not self._fits(encoded):
            self.seal()
        begins = not self._open
        if begins:
            self._open_since_s = now_s
        self._open.append(encoded)
        self._open_bytes += len(encoded)
        self.bytes += len(encoded)
        self.chunks += 1
        full = len(self._open) >= self._chunks_max
        if full:
            self.seal()
        return begins or full

    def add_last(self, batch: Batch) -> None:
        """The last batch. Nothing may be added after it."""
        self.seal()
        self._sealed.append(batch)
        self.bytes += batch.content_bytes
        self.chunks += batch.chunks

    def seal(self) -> None:
        """Make everything that is here due."""
        if self._open:
            self._sealed.append(Batch(self._framing.body(self._open), len(self._open), self._open_bytes))
            self._open = []
            self._open_bytes = 0

    def wait_s(self, now_s: float) -> float | None:
        """How long until a batch is due: 0.0 if one is, None if there is nothing to wait for."""
        if self._sealed:
            return 0.0
        if not self._open:
            return None
        if self._first:
            return 0.0
        return max(0.0, self._open_since_s + self._linger_s - now_s)

    def take(self) -> Batch:
        """The oldest batch, due or not. Call it only while `wait_s` is not None."""
        if not self._sealed:
            self.seal()
        batch = self._sealed.popleft()
        self._first = False
        self.bytes -= batch.content_bytes
        self.chunks -= batch.chunks
        return batch

    def _fits(self, encoded: bytes) -> bool:
        together = self._framing.body_bytes(self._open_bytes + len(encoded), len(self._open) + 1)
        return together <= self._bytes_max
