"""The store, row by row and page by page.

SQLite has no checksums of what it stores. Its own check finds what breaks its trees; this one decodes every row and
page and holds them against each other. A bit that changes one letter of a text into another is found by neither.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Final

import msgspec

from broker.core.page import Page, unpack_lengths
from broker.core.state import (
    Generation,
    Key,
    Message,
    Producer,
    Row,
    Session,
    Stream,
    Subscription,
    decode_row,
    is_watched,
    owner,
)
from broker.doctor.finding import Finding, Weight
from broker.errors import Damaged, NewerFormat, StartError
from broker.sqlite import check_form
from broker.store import Head
from broker.store.form import FORM
from broker.store.page_row import decode_page

ALIKE_MAX: Final = 20
"""Findings of one kind; behind them is said how many more there are."""

_TYPES: Final[dict[bytes, type[msgspec.Struct]]] = {
    b"s": Stream,
    b"p": Producer,
    b"S": Session,
    b"g": Generation,
    b"m": Message,
    b"w": Subscription,
}
_SQLITE_PAGE: Final = re.compile(r"\bpage (\d+)")
_COMMA: Final = ord(",")
_records: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Examined(msgspec.Struct):
    """What the store is like. Without a head nothing else can be told."""

    uuid: bytes | None = None
    head: Head | None = None
    rows: int = 0
    streams: int = 0
    sessions: int = 0
    pages: int = 0
    data_bytes: int = 0
    is_whole: bool = True
    refusal: StartError | None = None
    """What a start would say."""
    findings: list[Finding] = msgspec.field(default_factory=list)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes neither the file nor its WAL. Raises sqlite3.Error."""
    scratch = path.with_name(f"{path.name}-shm")
    had_scratch = scratch.exists()
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            yield connection
    finally:
        if not had_scratch:
            scratch.unlink(missing_ok=True)


def examine(path: Path, *, thorough: bool = True) -> Examined:
    """All of the store at `path`; without `thorough` only what SQLite's quick check and the head tell."""
    found = Examined()
    examination = _Examination(path.name, found)
    try:
        with reading(path) as connection:
            examination.examine(connection, thorough=thorough)
    except (Damaged, NewerFormat) as error:
        examination.add(str(error), Weight.NEWER if isinstance(error, NewerFormat) else Weight.DAMAGE)
        found.refusal = error
    except sqlite3.Error as error:
        examination.add(f"SQLite cannot read it: {error}")
        found.refusal = found.refusal or (None if found.head else Damaged(f"{path.name}: {error}"))
    for what, count in examination.alike.items():
        if count > ALIKE_MAX:
            found.findings.append(
                Finding(weight=Weight.DAMAGE, file=path.name, what=f"{count - ALIKE_MAX} more like this: {what}")
            )
    found.is_whole = not found.findings
    return found


class _Examination:
    """One look at a store."""

    def __init__(self, name: str, found: Examined) -> None:
        self._name = name
        self._found = found
        self.alike: dict[str, int] = {}  # how many findings of a kind

    def add(
        self,
        what: str,
        weight: Weight = Weight.DAMAGE,
        *,
        at: int | None = None,
        end: int | None = None,
        stream: str = "",
    ) -> None:
        kind = re.sub(r"\d+|b'.*?'|'.*?'", "…", what)
        self.alike[kind] = self.alike.get(kind, 0) + 1
        if self.alike[kind] <= ALIKE_MAX:
            streams = (stream,) if stream else ()
            self._found.findings.append(
                Finding(weight=weight, file=self._name, what=what, at=at, end=end, streams=streams)
            )

    def examine(self, connection: sqlite3.Connection, *, thorough: bool) -> None:
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise Damaged(f"{self._name} is empty")
        check_form(connection, FORM, self._name)
        self._examine_head(connection)
        self._examine_trees(connection, thorough=thorough)
        if thorough:
            self._examine_pages(connection)
            self._examine_rows(connection)

    def _examine_head(self, connection: sqlite3.Connection) -> None:
        row = connection.execute("SELECT uuid, applied_index, time_ms, mark FROM head").fetchone()
        if row is None:
            raise Damaged(f"{self._name} does not say where it stands")
        self._found.uuid, self._found.head = row[0], Head(*row[1:])

    def _examine_trees(self, connection: sqlite3.Connection, *, thorough: bool) -> None:
        check = "integrity_check" if thorough else "quick_check"
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        for (text,) in connection.execute(f"PRAGMA {check}({ALIKE_MAX})"):
            for line in text.splitlines():
                if line == "ok" or line.startswith("***"):
                    continue
                number = _SQLITE_PAGE.search(line)
                at = (int(number[1]) - 1) * page_bytes if number else None
                self.add(f"SQLite: {line}", at=at, end=None if at is None else at + page_bytes)

    # -- pages -------------------------------------------------------------------------------------------------------

    def _examine_pages(self, connection: sqlite3.Connection) -> None:
        select = 'SELECT id, incarnation, start, "end", bytes, data FROM page'
        for row_id, incarnation, start, end, size_bytes, stored in connection.execute(select):
            self._found.pages += 1
            self._found.data_bytes += size_bytes
            where = f"page {row_id} (positions {start} to {end} of incarnation {incarnation:016x})"
            try:
                what = _contradiction(decode_page(start, end, stored), size_bytes)
            except NewerFormat as error:
                self.add(f"{where}: {error}", Weight.NEWER)
            except Damaged as error:
                self.add(f"{where}: {error}")
            else:
                if what:
                    self.add(f"{where}: {what}")

    # -- rows --------------------------------------------------------------------------------------------------------

    def _examine_rows(self, connection: sqlite3.Connection) -> None:
        select = "SELECT key, owner, deadline_ms, is_watched, active_ms, value FROM row"
        for key, *columns, value in connection.execute(select):
            self._found.rows += 1
            try:
                row = decode_row(value)
            except msgspec.MsgspecError as error:
                self._add_bad_row(key, f"cannot be decoded: {error}", watched=bool(columns[2]))
                continue
            if type(row) is not _TYPES.get(key[:1]):
                self._add_bad_row(key, f"holds a {type(row).__name__}", watched=bool(columns[2]))
            elif columns != _columns(row):
                self._add_bad_row(key, "is listed otherwise than it says", watched=False)
            elif isinstance(row, Stream):
                self._found.streams += 1
                self._examine_stream(connection, _path(key), row)
            elif isinstance(row, Session):
                self._found.sessions += 1

    def _add_bad_row(self, key: Key, what: str, *, watched: bool) -> None:
        self.add(f"the row {key!r} {what}", stream=_path(key))
        if watched:  # a start loads it
            self._found.refusal = self._found.refusal or Damaged(f"the stored row {key!r} {what}")

    def _examine_stream(self, connection: sqlite3.Connection, path: str, stream: Stream) -> None:
        """Its pages follow each other from its first record to its last."""
        first, last, positions = connection.execute(
            'SELECT min(start), max("end"), sum("end" - start) FROM page WHERE incarnation = ?', (stream.incarnation,)
        ).fetchone()
        if first is None:
            first, last, positions = stream.begin, stream.begin, 0
        if (first, last, positions) != (stream.begin, stream.tail, stream.tail - stream.begin):
            self.add(
                f"the stream {path!r} has positions {stream.begin} to {stream.tail}, its pages have {positions} from"
                f" {first} to {last}",
                stream=path,
            )
        snapshot = connection.execute(
            "SELECT position FROM snapshot WHERE path = ? AND incarnation = ?", (path, stream.incarnation)
        ).fetchone()
        if snapshot is not None and snapshot[0] > stream.tail:
            self.add(f"the messages of {path!r} stand at {snapshot[0]}, its records end at {stream.tail}", stream=path)


def _columns(row: Row) -> list[object]:
    """What stands beside a row's value: see `form`."""
    deadline_ms = row.deadline_ms if isinstance(row, Stream) else None
    active_ms = row.active_ms if isinstance(row, Session) else None
    return [owner(row), deadline_ms, is_watched(row), active_ms]


def _path(key: Key) -> str:
    """The path, or what else a key names, as far as it can be told."""
    return key[1:].partition(b"\0")[0].decode(errors="replace")


def _contradiction(page: Page, size_bytes: int) -> str:
    """What is wrong with a page; "" when nothing is."""
    if len(page.data) != size_bytes:
        return f"it has {len(page.data)} bytes of data and says {size_bytes}"
    count = page.end - page.start
    if not page.lengths:
        return "" if len(page.data) == count else f"it has {len(page.data)} bytes for {count} positions"
    try:
        lengths = unpack_lengths(page.lengths)
        if len(lengths) != count or sum(lengths) + count - 1 != len(page.data):
            return "its lengths are not those of its records"
        found = _records.decode(b"[%b]" % page.data)
        page.data.decode()
    except (ValueError, msgspec.MsgspecError) as error:
        return f"its records are no JSON: {error}"
    ends = accumulate(lengths[:-1], lambda end, length: end + 1 + length)
    are_apart = all(page.data[end] == _COMMA for end in ends)
    return "" if len(found) == count and are_apart else "its records are not where it says"
