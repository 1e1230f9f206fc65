"""The client library that reads: a resumable reader, and the view of a session.

`consumer.fold` folds the chunks of one answer. Everything is imported when it is first asked for: the broker shares
`consumer.wire` and `consumer.session` and must not load an HTTP client for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumer.batch import Batch
    from consumer.changes import Change
    from consumer.errors import (
        AccessDenied,
        BadAnswer,
        BadRequest,
        ClientError,
        Closed,
        Conflict,
        Gone,
        NotFound,
        OffsetsFailed,
        RateLimited,
        Refused,
        TooLarge,
        Unavailable,
        ValueFailed,
    )
    from consumer.limits import Limits
    from consumer.offsets import FileOffsets, MemoryOffsets, OffsetStore, SqliteOffsets
    from consumer.reader import Reader, Snapshot
    from consumer.recents import Recents, RecentsChange
    from consumer.session_list import SessionSummary
    from consumer.view import Sent, SessionView

__all__ = [
    "AccessDenied",
    "BadAnswer",
    "BadRequest",
    "Batch",
    "Change",
    "ClientError",
    "Closed",
    "Conflict",
    "FileOffsets",
    "Gone",
    "Limits",
    "MemoryOffsets",
    "NotFound",
    "OffsetStore",
    "OffsetsFailed",
    "RateLimited",
    "Reader",
    "Recents",
    "RecentsChange",
    "Refused",
    "Sent",
    "SessionSummary",
    "SessionView",
    "Snapshot",
    "SqliteOffsets",
    "TooLarge",
    "Unavailable",
    "ValueFailed",
]

_HOMES = {
    "Batch": "batch",
    "Change": "changes",
    "FileOffsets": "offsets",
    "Limits": "limits",
    "MemoryOffsets": "offsets",
    "OffsetStore": "offsets",
    "Reader": "reader",
    "Recents": "recents",
    "RecentsChange": "recents",
    "Sent": "view",
    "SessionSummary": "session_list",
    "SessionView": "view",
    "Snapshot": "reader",
    "SqliteOffsets": "offsets",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
