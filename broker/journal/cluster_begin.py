"""Where a log may begin: at a record that says which log it is, for the first one of a log that was trimmed must.

The same record settles who makes a snapshot. Whoever finds that one is due writes it; the newest of them counts, as the
log orders them, and its writer makes the snapshot behind it. The others wait, until that writer is known to be gone, or
the log has grown behind it by what makes the next one due. Two that make one at the same time do no harm.
"""

from __future__ import annotations

import asyncio

import msgspec

from broker import limits
from broker.errors import StartError
from broker.journal.cluster_record import Envelope, Meta, decode
from broker.journal.shared_log import LogRecord, SharedLog


class Begin(msgspec.Struct, frozen=True):
    """The newest record that the log could begin with."""

    position: int = 0
    boot: int = 0  # who wrote it; 0 when that one is gone, or was there before this node began
    log_bytes: int = 0  # of the records before it

    def after(self, envelope: Envelope, meta: Meta, position: int, log_bytes: int) -> Begin:
        """The same once the record at `position` has been applied, with so many bytes of log before it."""
        if envelope.meta == meta:
            return Begin(position, envelope.boot, log_bytes)
        if envelope.retired and envelope.retired == self.boot:
            return Begin(self.position)
        return self


async def meta_at(log: SharedLog, position: int) -> Meta | None:
    """What the record at `position`, the first of the log, says of the log; None when it does not.

    Moves the place that the log is read from. Raises StartError, NewerFormat and LogLost.
    """
    envelope = decode((await record_at(log, position)).data)
    return None if envelope is None else envelope.meta


async def record_at(log: SharedLog, position: int) -> LogRecord:
    """A record that is there. Moves the place that the log is read from. Raises StartError and LogLost."""
    log.seek(position)
    try:
        async with asyncio.timeout(limits.CLUSTER_WAIT_S):
            return (await log.read())[0]
    except TimeoutError:
        raise StartError(f"the record at position {position} of the log cannot be read") from None
