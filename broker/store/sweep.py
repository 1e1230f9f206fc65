"""Sweeping what ended lives left, a bounded piece in each step."""

from __future__ import annotations

import sqlite3
from typing import Final

from broker.core.state import Key, owned_prefixes

SWEEP_PAGES_MAX: Final = 16
"""Pages in one step: a few MiB of them."""
SWEEP_ROWS_MAX: Final = 500
"""Rows looked at in one step."""


def is_swept(connection: sqlite3.Connection) -> bool:
    """Whether nothing is left to do."""
    return connection.execute("SELECT 1 FROM garbage LIMIT 1").fetchone() is None


def sweep_step(connection: sqlite3.Connection) -> None:
    """One piece, inside a transaction that the caller holds: pages first, they are what takes room."""
    path, life, swept = connection.execute("SELECT path, life, swept FROM garbage LIMIT 1").fetchone()
    if _drop_pages(connection, life) or _drop_snapshot(connection, path, life):
        return
    last_key = _drop_rows(connection, path, life, swept)
    if last_key is None:
        connection.execute("DELETE FROM garbage WHERE path = ? AND life = ?", (path, life))
    else:
        connection.execute("UPDATE garbage SET swept = ? WHERE path = ? AND life = ?", (last_key, path, life))


def _drop_pages(connection: sqlite3.Connection, life: int) -> int:
    return connection.execute(
        "DELETE FROM page WHERE id IN (SELECT id FROM page WHERE incarnation = ? LIMIT ?)", (life, SWEEP_PAGES_MAX)
    ).rowcount


def _drop_snapshot(connection: sqlite3.Connection, path: str, life: int) -> int:
    connection.execute("DELETE FROM snapshot WHERE path = ? AND incarnation = ?", (path, life))
    return connection.execute(
        "DELETE FROM snapshot_message WHERE id IN (SELECT id FROM snapshot_message WHERE incarnation = ? LIMIT ?)",
        (life, SWEEP_ROWS_MAX),
    ).rowcount


def _drop_rows(connection: sqlite3.Connection, path: str, life: int, swept: Key) -> Key | None:
    """Look at the next rows after `swept` that go with a life of `path`; the last key seen, None when all were.

    The key range is shared with later lives of the path, so it is walked once and not searched again from its start.
    """
    for prefix in sorted(owned_prefixes(path)):
        first = max(prefix, swept + b"\0")  # the first key after `swept`
        rows: list[tuple[Key, int]] = connection.execute(
            "SELECT key, owner FROM row WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            (first, prefix + b"\xff", SWEEP_ROWS_MAX),
        ).fetchall()
        if rows:
            connection.executemany("DELETE FROM row WHERE key = ?", [(key,) for key, owner in rows if owner == life])
            return rows[-1][0]
    return None
