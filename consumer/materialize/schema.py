"""The tables that `streamfold materialize` keeps, how they come to be, and the statements that write them.

One text for both databases; `{json}`, `{time}` and `{bytes}` are what each calls these. What the columns mean is told
in docs/materialize.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from consumer.materialize.sink import WrongSchema

__all__ = ["MESSAGE_COLUMNS", "MIGRATIONS", "POSTGRES", "SQLITE", "Dialect", "Migration", "check_version"]


@dataclass(frozen=True, slots=True)
class Migration:
    """What makes `version` of the version before it. Once released it never changes: a mend is another migration."""

    version: int
    statements: tuple[str, ...]


_FIRST: Final = (
    """
    CREATE TABLE streamfold_sessions (
        session_id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        metadata {json},
        created_at {time},
        last_activity_at {time},
        next_offset TEXT NOT NULL,
        epoch BIGINT NOT NULL
    )
    """,
    """
    CREATE TABLE streamfold_messages (
        session_id TEXT NOT NULL,
        message_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        role TEXT NOT NULL,
        status TEXT NOT NULL,
        generation_id TEXT,
        lane TEXT,
        format TEXT,
        message {json},
        text TEXT NOT NULL,
        reason TEXT,
        error {json},
        usage {json},
        metadata {json},
        missing {json},
        created_at {time},
        ended_at {time},
        fold_state {bytes} NOT NULL,
        PRIMARY KEY (session_id, message_id),
        UNIQUE (session_id, position)
    )
    """,
    "CREATE TABLE streamfold_epoch (epoch BIGINT NOT NULL)",
    "INSERT INTO streamfold_epoch VALUES (0)",
)

MIGRATIONS: Final = (Migration(1, _FIRST),)
"""In order, from an empty database on."""

MESSAGE_COLUMNS: Final = (
    "session_id",
    "message_id",
    "position",
    "role",
    "status",
    "generation_id",
    "lane",
    "format",
    "message",
    "text",
    "reason",
    "error",
    "usage",
    "metadata",
    "missing",
    "created_at",
    "ended_at",
    "fold_state",
)
_KEY: Final = ("session_id", "message_id")


TIMES: Final = frozenset({"created_at", "ended_at"})


def check_version(version: int, migrations: Sequence[Migration]) -> None:
    """Raises WrongSchema if the tables are of a version that these migrations do not lead to."""
    known = max(migration.version for migration in migrations)
    if version > known:
        raise WrongSchema(f"the tables are of version {version}, and this streamfold knows {known}; run a newer one")


_PARAMETER: Final = re.compile(r"\?")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one database is spoken to. Each statement takes its values in the order in which they are named."""

    types: Mapping[str, str]
    is_numbered: bool
    """Whether parameters are `$1`, `$2`, …; else they are `?`."""

    def ddl(self, statement: str) -> str:
        return statement.format_map(self.types)

    def sql(self, statement: str) -> str:
        if not self.is_numbered:
            return statement
        numbers = iter(range(1, statement.count("?") + 1))
        return _PARAMETER.sub(lambda _: f"${next(numbers)}", statement)


SQLITE: Final = Dialect(MappingProxyType({"json": "TEXT", "time": "TEXT", "bytes": "BLOB"}), is_numbered=False)
# JSON and not JSONB: a model may say \u0000, or half a surrogate pair, which JSONB cannot hold.
POSTGRES: Final = Dialect(MappingProxyType({"json": "JSON", "time": "TIMESTAMPTZ", "bytes": "BYTEA"}), is_numbered=True)

# -- the schema's own ------------------------------------------------------------------------------------------------

MAKE_VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS streamfold_schema (version INTEGER PRIMARY KEY, applied_at {time} NOT NULL)"
)
READ_VERSION: Final = "SELECT coalesce(max(version), 0) FROM streamfold_schema"
NOTE_VERSION: Final = "INSERT INTO streamfold_schema VALUES (?, CURRENT_TIMESTAMP)"

# -- the fence -------------------------------------------------------------------------------------------------------

RAISE_EPOCH: Final = "UPDATE streamfold_epoch SET epoch = epoch + 1"
READ_EPOCH: Final = "SELECT max(epoch) FROM streamfold_epoch"

CLAIM: Final = (
    "INSERT INTO streamfold_sessions (session_id, status, next_offset, epoch) VALUES (?, 'idle', '-1', ?)"
    " ON CONFLICT (session_id) DO UPDATE SET epoch = excluded.epoch WHERE streamfold_sessions.epoch <= excluded.epoch"
)
READ_SESSION: Final = "SELECT epoch, next_offset FROM streamfold_sessions WHERE session_id = ?"
READ_STATES: Final = "SELECT position, message_id, fold_state FROM streamfold_messages WHERE session_id = ?"

# -- writing ---------------------------------------------------------------------------------------------------------

MOVE_SESSION: Final = (
    "UPDATE streamfold_sessions SET status = ?, metadata = ?, created_at = ?, last_activity_at = ?, next_offset = ?"
    " WHERE session_id = ? AND epoch = ? AND next_offset = ?"
)
PUT_MESSAGE: Final = (
    f"INSERT INTO streamfold_messages ({', '.join(MESSAGE_COLUMNS)})"  # noqa: S608  names of ours, no values
    f" VALUES ({', '.join('?' for _ in MESSAGE_COLUMNS)}) ON CONFLICT (session_id, message_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in MESSAGE_COLUMNS if name not in _KEY)
)
DELETE_MESSAGES: Final = "DELETE FROM streamfold_messages WHERE session_id = ?"
DELETE_SESSION: Final = "DELETE FROM streamfold_sessions WHERE session_id = ? AND epoch <= ?"

# -- looking ---------------------------------------------------------------------------------------------------------

READ_OFFSET: Final = "SELECT next_offset FROM streamfold_sessions WHERE session_id = ?"
READ_IDS: Final = "SELECT session_id FROM streamfold_sessions WHERE session_id > ? ORDER BY session_id LIMIT ?"
