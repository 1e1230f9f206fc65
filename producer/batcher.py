"""Chunks in, batches out: when a batch is cut, and what is in it. Pure; the time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from producer.encoding import chunks_body
from producer.limits import Limits

__all__ = ["Batch", "Batcher", "Verb"]


class Verb(StrEnum):
    """What a batch does; the last part of its URL."""

    CHUNKS = "chunks"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels under one seq. Its bytes never change, however often it is sent: the broker compares them."""

    verb: Verb
    body: bytes
    chunks: int


class Batcher:
    """The chunks that have not been sent yet, in the order they were written.

    A batch is due when it is full, when its oldest chunk has waited for `linger_ms`, when somebody asked by `seal`, and
    at once for the first chunk. A due batch that nobody takes goes on growing until it is full.
    """

    def __init__(self, limits: Limits) -> None:
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

    def add_finish(self, body: bytes) -> None:
        """The last batch. Nothing may be added after it."""
        self.seal()
        self._sealed.append(Batch(Verb.FINISH, body, chunks=0))

    def seal(self) -> None:
        """Make everything that is here due."""
        if self._open:
            self._sealed.append(Batch(Verb.CHUNKS, chunks_body(self._open), len(self._open)))
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
        self.bytes -= content_bytes(batch)
        self.chunks -= batch.chunks
        return batch

    def _fits(self, encoded: bytes) -> bool:
        # One byte for each comma, two for the brackets.
        return self._open_bytes + len(self._open) + len(encoded) + 2 <= self._bytes_max


def content_bytes(batch: Batch) -> int:
    """The chunks of a batch without brackets and commas: what they counted for before they were sealed."""
    return len(batch.body) - batch.chunks - 1 if batch.chunks else 0
