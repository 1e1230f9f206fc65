"""The uploads of one broker: counted, bounded, and ended when it stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from broker import limits
from broker.errors import Overloaded
from broker.http.async_acks import AsyncAcks
from broker.http.gathering import Gathering
from broker.http.request import Request
from broker.http.session_routes import Target
from broker.http.traffic import Traffic
from broker.http.upload import Upload, leaving
from broker.partitions import Partitioned


class Uploads:
    """Those of one broker, counted, bounded, and ended when it stops."""

    def __init__(
        self, partition: Partitioned, traffic: Traffic, async_acks: AsyncAcks, uploads_max: int = limits.UPLOADS_MAX
    ) -> None:
        self.partition = partition
        self.traffic = traffic
        self.async_acks = async_acks
        self.begun: Counter[str] = Counter()
        """Uploads by the way they came in."""
        self.refusals = 0
        """Uploads that ended because a batch of theirs was refused, or not written."""
        self.batches = 0
        """Accepted or duplicate."""
        self._uploads_max = uploads_max
        self._gathering: Gathering | None = None
        self._open: dict[Upload, str] = {}
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._acked: list[Upload] = []  # those of which something was acknowledged in this commit, and not told
        partition.all_told = self._tell

    @property
    def open(self) -> Counter[str]:
        """How many are in progress, by the way they came in."""
        return Counter(self._open.values())

    @property
    def gathering(self) -> Gathering:
        """What they propose together."""
        if self._gathering is None:  # an event loop runs now
            self._gathering = Gathering(self.partition.propose_together)
        return self._gathering

    @property
    def in_flight(self) -> int:
        """Batches proposed and not yet durable."""
        return sum(upload.in_flight for upload in self._open)

    @contextmanager
    def upload(self, mode: str, request: Request, target: Target) -> Iterator[Upload]:
        """A new one, for as long as this lasts. Raises BadRequest, Overloaded when there are too many, Unavailable."""
        if self.partition.draining:
            raise leaving()
        if len(self._open) >= self._uploads_max:
            raise Overloaded(f"{len(self._open)} uploads are open")
        upload = Upload(self, request, target)
        self.begun[mode] += 1
        self._open[upload] = mode
        self._none_open.clear()
        try:
            yield upload
        finally:
            upload.end()
            del self._open[upload]
            if not self._open:
                self._none_open.set()

    def tell_soon(self, upload: Upload) -> None:
        """Have it `tell` when all of a commit is applied and answered, so that it tells the newest ack only."""
        self._acked.append(upload)
        if len(self._acked) == 1:  # not every outcome comes with a commit
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        if self._acked:
            now_s = asyncio.get_running_loop().time()
            acked, self._acked = self._acked, []
            for upload in acked:
                upload.tell(now_s)

    async def drain(self, timeout_s: float) -> None:
        """Let each tell its last ack and end, and return when they have, or after `timeout_s`."""
        for upload in list(self._open):
            upload.fail(leaving())
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()
        except TimeoutError:
            return
