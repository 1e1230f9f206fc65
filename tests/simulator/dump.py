"""The logical state of a replica, to be compared: however its records are spread over pages, wherever it lies."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping

from broker.core.page import Page
from broker.core.state import Key, Row, Session, Stream, Subscription, decode_row, encode_row, owner
from broker.store.page_row import decode_page

Dump = dict[bytes, bytes]


def store_dump(connection: sqlite3.Connection) -> Dump:
    """That of a store."""
    rows = {bytes(key): decode_row(value) for key, value in connection.execute("SELECT key, value FROM row")}
    pages: dict[int, list[Page]] = defaultdict(list)
    query = 'SELECT incarnation, start, "end", data FROM page ORDER BY incarnation, start'
    for incarnation, start, end, stored in connection.execute(query):
        pages[incarnation].append(decode_page(start, end, stored))
    return paged_dump(rows, pages)


def paged_dump(rows: Mapping[Key, Row], pages: Mapping[int, list[Page]]) -> Dump:
    """That of rows, and of each life's own consecutive pages."""
    return dump(rows, {life: _joined(of_life) for life, of_life in pages.items()})


def dump(rows: Mapping[Key, Row], data: Mapping[int, bytes]) -> Dump:
    """That of rows and data: what goes with lives that go on, of the rest nobody hears again."""
    living: set[int] = set()
    for row in rows.values():
        if isinstance(row, Stream):
            living.add(row.incarnation)
        elif isinstance(row, Session | Subscription):
            living.add(row.birth)
    logical = {key: encode_row(row) for key, row in rows.items() if owner(row) in living}
    for life in living & data.keys():
        logical[b"/%d" % life] = data[life]
    return logical


def _joined(pages: list[Page]) -> bytes:
    return b"".join(page.data + b"," if page.lengths else page.data for page in pages).removesuffix(b",")
