"""Writing a checkpoint: everything inside one transaction, which the caller holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence

from broker.core.page import Page
from broker.core.state import Key, Row, Session, Stream, encode_row, is_watched, owner
from broker.errors import Damaged
from broker.store import Checkpoint, Head, Snapshot
from broker.store.page_row import decode_page, encode_page, merge

Wrote = Callable[[int], None]
"""Told of bytes that SQLite was given."""


def write_checkpoint(connection: sqlite3.Connection, checkpoint: Checkpoint, wrote: Wrote) -> None:
    """Write all of `checkpoint`.

    Raises sqlite3.Error, ValueError or Damaged for pages that do not meet, and whatever `wrote` raises.
    """
    _write_rows(connection, checkpoint.rows)
    for incarnation, pages in checkpoint.pages:
        wrote(_write_pages(connection, incarnation, pages))
    for snapshot in checkpoint.snapshots:
        _write_snapshot(connection, snapshot)
        wrote(sum(len(data) for _, _, data in snapshot.messages))
    connection.executemany("INSERT OR REPLACE INTO garbage (path, life, swept) VALUES (?, ?, x'')", checkpoint.ended)
    _write_head(connection, checkpoint.head)


def _write_head(connection: sqlite3.Connection, head: Head) -> None:
    connection.execute(
        "UPDATE head SET applied_index = ?, time_ms = ?, mark = ?",
        (head.applied_index, head.time_ms, head.mark),
    )


def _write_rows(connection: sqlite3.Connection, rows: Mapping[Key, Row | None]) -> None:
    gone = [(key,) for key, row in rows.items() if row is None]
    connection.executemany("DELETE FROM row WHERE key = ?", gone)
    connection.executemany(
        """INSERT INTO row (key, owner, deadline_ms, is_watched, value, active_ms) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, deadline_ms = excluded.deadline_ms,
        is_watched = excluded.is_watched, value = excluded.value, active_ms = excluded.active_ms""",
        _stored_rows(rows),
    )


def _stored_rows(rows: Mapping[Key, Row | None]) -> Iterator[tuple[Key, int, int | None, bool, bytes, int | None]]:
    """One by one: executemany lets other threads run between them."""
    for key, row in rows.items():
        if row is not None:
            deadline_ms = row.deadline_ms if isinstance(row, Stream) else None
            active_ms = row.active_ms if isinstance(row, Session) else None
            yield key, owner(row), deadline_ms, is_watched(row), encode_row(row), active_ms


def _write_pages(connection: sqlite3.Connection, incarnation: int, added: Sequence[Page]) -> int:
    """How many bytes of data that wrote: with what was stored before, if it was merged."""

    def stored_before(position: int, bytes_max: int) -> Page | None:
        return _page_before(connection, incarnation, position, bytes_max)

    pages = merge(added, stored_before)
    if pages[0].start < added[0].start:
        connection.execute("DELETE FROM page WHERE incarnation = ? AND start >= ?", (incarnation, pages[0].start))
    connection.executemany(
        'INSERT INTO page (incarnation, start, "end", bytes, data) VALUES (?, ?, ?, ?, ?)',
        ((incarnation, page.start, page.end, len(page.data), encode_page(page)) for page in pages),
    )
    return sum(len(page.data) for page in pages)


def _page_before(connection: sqlite3.Connection, incarnation: int, position: int, bytes_max: int) -> Page | None:
    """The last stored page below `position`, when it is not larger. Raises Damaged unless it ends there."""
    row = connection.execute(
        """SELECT id, start, "end", bytes FROM page WHERE incarnation = ? AND start < ? ORDER BY start DESC LIMIT 1""",
        (incarnation, position),
    ).fetchone()
    if row is None:
        return None
    row_id, start, end, size_bytes = row
    if end != position:
        raise Damaged(f"stored pages of incarnation {incarnation:016x} end at {end}, new ones begin at {position}")
    if size_bytes > bytes_max:
        return None
    (data,) = connection.execute("SELECT data FROM page WHERE id = ?", (row_id,)).fetchone()
    return decode_page(start, end, data)


def _write_snapshot(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
    """Messages of another incarnation stay until that life is swept."""
    connection.execute(
        "INSERT OR REPLACE INTO snapshot (path, incarnation, position) VALUES (?, ?, ?)",
        (snapshot.path, snapshot.incarnation, snapshot.position),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO snapshot_message (incarnation, ordinal, message_id, data) VALUES (?, ?, ?, ?)",
        ((snapshot.incarnation, ordinal, message_id, data) for ordinal, message_id, data in snapshot.messages),
    )
