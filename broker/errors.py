"""What can go wrong in a broker besides a refusal (which is an `Outcome`).

BrokerError
├── Unavailable        503, retry: it was not done, and never will be
│   └── Overloaded     503, retry: a bound is reached
├── OutcomeUnknown     503, retry the same bytes: it may have been done, or not
│   └── EngineStopped  the same for everything from here on: the disk's answer cannot be trusted any more
│       └── Diverged   … or what this process made of the log, which is not what others made of it
└── StartError         the process ends with a message for the operator
    ├── DataDirInUse
    ├── NewerFormat
    └── Damaged
"""

from __future__ import annotations


class BrokerError(Exception):
    """The root; `retry_after_ms` is a hint for the client, where a retry can help."""

    retry_after_ms: int | None = None


class Unavailable(BrokerError):
    """The entry was definitely not made durable; nothing of it remains. The same request may succeed later."""

    retry_after_ms = 1000


class Overloaded(Unavailable):
    """A bound was reached: too much waits already."""


class OutcomeUnknown(BrokerError):
    """Whether the entry is durable cannot be told. Only a retry with the same producer and seq is safe."""

    retry_after_ms = 1000


class EngineStopped(OutcomeUnknown):
    """The engine acknowledges nothing any more (a failed fsync, a bug in apply). It never resumes by itself."""

    spoils_reads: bool = False
    """Whether what was applied before is not to be shown any more either."""


class Diverged(EngineStopped):
    """Two replicas made different states of the same log. The store of this one is not to be used any more."""

    spoils_reads = True


class StartError(BrokerError):
    """The broker must not start like this. `hint` tells the operator what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class DataDirInUse(StartError):
    """Another process has the data folder."""


class NewerFormat(StartError):
    """The files were written by a newer version."""


class Damaged(StartError):
    """The files contradict themselves or each other."""
