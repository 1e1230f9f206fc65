"""Chunks in, batches out: when a batch is cut, and what is in it. Pure; the time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from producer.coalesce import Delta, Run
from producer.encoding import JSON_ARRAY, Framing
from producer.limits import Limits

__all__ = ["Batch", "Batcher"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels under one seq. Its bytes never change, however often it is sent: the broker compares them."""

    body: bytes
    chunks: int
    content_bytes: int
    """What its chunks counted for before they were sealed: their bytes without what separates them, joined ones perhaps
    a little more."""
    last: bool = False
    """It ends what it is written to: the finish of a generation, the close of a stream."""
    since_s: float = field(default=0.0, compare=False)
    """When its oldest chunk was written."""
    written: int = field(default=0, compare=False)
    """Chunks as they were written: `chunks`, and those that were merged into them."""
    txid: str | None = None
    """What its writer calls it; its records carry that."""


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
        self._open_written = 0
        self._first = True
        self._chunk_bytes_max = limits.chunk_bytes_max
        self._run: Run | None = None
        """What the newest chunk is part of, while another delta may join it. It is not in `_open` yet."""
        self.merged = 0
        """Chunks that became part of the one before."""
        self.bytes = 0
        """Held here, sealed or not: encoded chunks without what separates them."""
        self.chunks = 0

    def cost(self, encoded: bytes, delta: Delta | None = None) -> tuple[int, int]:
        """How many bytes and chunks more there would be here if this were added."""
        joining = self._joining(delta)
        return (len(encoded), 1) if joining is None else (joining, 0)

    def add(self, encoded: bytes, now_s: float, delta: Delta | None = None) -> bool:
        """Take a chunk; True if whoever sends should look again: a batch begins to wait, or is full.

        With `delta`, which is the chunk seen as one, it joins the chunk before if the two are alike.
        """
        joining = self._joining(delta)
        if joining is not None and delta is not None and self._run is not None:
            self._run.add(delta, joining)
            self._open_bytes += joining
            self.bytes += joining
            self._open_written += 1
            self.merged += 1
            return False
        return self._add(encoded, now_s, delta)

    def _joining(self, delta: Delta | None) -> int | None:
        """How many bytes more it costs to join the chunk before; None if it cannot."""
        if delta is None or self._run is None:
            return None
        cost = self._run.cost(delta)
        if cost is None or self._run.bytes + cost > self._chunk_bytes_max or not self._fits(cost, 0):
            return None
        return cost

    def _add(self, encoded: bytes, now_s: float, delta: Delta | None) -> bool:
        self._end_run()
        if self._open and not self._fits(len(encoded), 1):
            self.seal()
        begins = not self._open_chunks
        if begins:
            self._open_since_s = now_s
        if delta is None:
            self._open.append(encoded)
        else:
            self._run = Run(delta)
        self._open_written += 1
        self._open_bytes += len(encoded)
        self.bytes += len(encoded)
        self.chunks += 1
        full = self._open_chunks >= self._chunks_max
        if full:
            self.seal()
        return begins or full

    def _end_run(self) -> None:
        """Nothing joins the newest chunk any more. It may be shorter than it was counted for."""
        if self._run is not None:
            self._open.append(self._run.encoded())
            self._run = None

    @property
    def _open_chunks(self) -> int:
        return len(self._open) + (self._run is not None)

    def add_batch(self, batch: Batch) -> None:
        """A batch as it is, behind everything that is here: the last one, or one that was cut by an earlier process."""
        self.seal()
        self._sealed.append(batch)
        self.bytes += batch.content_bytes
        self.chunks += batch.chunks

    def seal(self) -> None:
        """Make everything that is here due."""
        self._end_run()
        if self._open:
            body = self._framing.body(self._open)
            chunks, bytes_, written = len(self._open), self._open_bytes, self._open_written
            self._sealed.append(Batch(body, chunks, bytes_, since_s=self._open_since_s, written=written))
            self._open = []
            self._open_bytes = self._open_written = 0

    def wait_s(self, now_s: float) -> float | None:
        """How long until a batch is due: 0.0 if one is, None if there is nothing to wait for."""
        if self._sealed:
            return 0.0
        if not self._open_chunks:
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

    def _fits(self, more_bytes: int, more_chunks: int) -> bool:
        """Whether the open batch has room for so much more."""
        together = self._framing.body_bytes(self._open_bytes + more_bytes, self._open_chunks + more_chunks)
        return together <= self._bytes_max
