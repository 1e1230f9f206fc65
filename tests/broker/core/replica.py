"""A replica: state applied from entries, the way a partition does it, with everything that must always hold checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from broker.core.apply import apply, keys
from broker.core.entry import Entry, Kind, decode, encode
from broker.core.generation import write_any
from broker.core.outcome import Outcome, Result
from broker.core.page import Page, records
from broker.core.state import (
    Changes,
    Generation,
    Key,
    Message,
    Row,
    Session,
    Stream,
    Subscription,
    decode_row,
    encode_row,
    generation_key,
    session_key,
    stream_key,
    subscription_key,
)
from consumer.wire import Code
from tests.broker.core.entries import append, create

BEGIN_MS = 1_700_000_000_000

_NEEDS_CHANCE = (
    Kind.CREATE,
    Kind.SESSION_CREATE,
    Kind.SESSION_RESET,
    Kind.SUBSCRIPTION_CREATE,
    Kind.SUBSCRIPTION_ATTEMPT,
    Kind.SUBSCRIPTION_CLAIM,
)


class LoadedRows(Mapping[Key, Row | None]):
    """The rows that `keys` named and no others; remembers which were looked at."""

    def __init__(self, entry: Entry, rows: Mapping[Key, Row]) -> None:
        self._rows = {key: rows.get(key) for key in keys(entry)}
        self.read: set[Key] = set()

    def __getitem__(self, key: Key) -> Row | None:
        self.read.add(key)
        return self._rows[key]  # KeyError: apply needs a row that `keys` does not name

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Replica:
    """Applies entries one by one; `index` and `now_ms` are those of the newest."""

    def __init__(self) -> None:
        self.index = 0
        self.now_ms = BEGIN_MS
        self.rows: dict[Key, Row] = {}
        self.pages: dict[tuple[str, int], list[Page]] = {}  # by (path, incarnation)
        self.ended: list[tuple[str, int]] = []
        self.history: list[tuple[int, bytes]] = []  # (time, entry bytes) in order

    def do(self, entry: Entry, *, after_ms: int = 0) -> Outcome:
        """Apply an entry `after_ms` later; returns what it did."""
        self.now_ms += after_ms
        self.index += 1
        if entry.kind in _NEEDS_CHANCE and not entry.nonce:
            entry = replace(entry, nonce=1000 + self.index)
        data = encode(entry)
        assert decode(data) == entry
        self.history.append((self.now_ms, data))
        loaded = LoadedRows(entry, self.rows)
        outcome, changes = apply(loaded, entry, self.index, self.now_ms)
        self._check_determinism(entry, outcome, changes)
        self._check_both_ways(entry, outcome, changes)
        self._check_nothing_changed_unless_told(entry, outcome, changes)
        self._check_keys(entry, loaded, changes)
        self._install(changes)
        return outcome

    def stream(self, path: str) -> Stream:
        """The Stream row of `path`."""
        row = self.rows[stream_key(path)]
        assert isinstance(row, Stream)
        return row

    def session(self, path: str) -> Session:
        """The Session row of `path`."""
        row = self.rows[session_key(path)]
        assert isinstance(row, Session)
        return row

    def generation(self, path: str, generation_id: str) -> Generation:
        """A generation, open or ended."""
        for generation in self.session(path).open:
            if generation.generation_id == generation_id:
                return generation
        row = self.rows[generation_key(path, generation_id)]
        assert isinstance(row, Generation)
        return row

    def subscription(self, subscription_id: str) -> Subscription:
        """The Subscription row."""
        row = self.rows[subscription_key(subscription_id)]
        assert isinstance(row, Subscription)
        return row

    def records(self, path: str) -> list[bytes]:
        """The records of the stream that is at `path` now."""
        return [record for page in self._content(path) for record in records(page)]

    def data(self, path: str) -> bytes:
        """The bytes of the stream that is at `path` now."""
        return b"".join(page.data for page in self._content(path))

    def _content(self, path: str) -> list[Page]:
        return self.pages.get((path, self.stream(path).incarnation), [])

    def _install(self, changes: Changes) -> None:
        for key, row in changes.puts.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = decode_row(encode_row(row))
                assert self.rows[key] == row
        for path, incarnation, page in changes.appended:
            pages = self.pages.setdefault((path, incarnation), [])
            begin = self.stream(path).begin  # of a fork: where it parted from its source
            assert page.start == (pages[-1].end if pages else begin), "a hole between two batches"
            assert page.end > page.start
            pages.append(page)
        self.ended += changes.ended

    def _check_determinism(self, entry: Entry, outcome: Outcome, changes: Changes) -> None:
        again, same = apply(LoadedRows(entry, self.rows), decode(encode(entry)), self.index, self.now_ms)
        assert (again, same.puts, same.appended, same.ended) == (
            outcome,
            changes.puts,
            changes.appended,
            changes.ended,
        )

    def _check_both_ways(self, entry: Entry, outcome: Outcome, changes: Changes) -> None:
        """The short way of most batches comes to what the long way does."""
        if entry.kind == Kind.CHUNKS:
            same = Changes(LoadedRows(entry, self.rows))
            assert write_any(same, entry, self.index, self.now_ms) == outcome
            assert (same.puts, same.appended, same.ended) == (changes.puts, changes.appended, changes.ended)

    def _check_nothing_changed_unless_told(self, entry: Entry, outcome: Outcome, changes: Changes) -> None:
        """A refusal or a duplicate changes nothing, but that it takes away an overdue stream, which was gone before."""
        if outcome.changed:
            return
        assert not changes.appended
        overdue = self.rows.get(stream_key(entry.path))
        if isinstance(overdue, Stream) and overdue.deadline_ms is not None and overdue.deadline_ms <= self.now_ms:
            left = replace(overdue, deleted=True) if overdue.children else None
            assert changes.puts == {stream_key(entry.path): left}
            assert changes.ended == ([] if left else [(entry.path, overdue.incarnation)])
        else:
            assert not changes.puts
            assert not changes.ended

    def _check_keys(self, entry: Entry, loaded: LoadedRows, changes: Changes) -> None:
        """What is read was named, and so was what is put, but for what one entry does to many.

        Ends of generations that another one or a reset brings about, and what a fork inherits, are put blindly, by an
        entry that shares its session's row with every entry that may look at them.
        """
        named = set(keys(entry))
        assert loaded.read <= named
        blind = set(changes.puts) - named
        assert all(isinstance(changes.puts[key], Generation | Message) for key in blind)
        assert not blind or session_key(entry.path) in named


def replayed(history: list[tuple[int, bytes]]) -> Replica:
    """A replica made from nothing but the bytes of a journal."""
    made = Replica()
    for time_ms, data in history:
        made.do(decode(data), after_ms=time_ms - made.now_ms)
    return made


def replica(*entries: Entry) -> Replica:
    """A replica on which these were applied, all with success."""
    made = Replica()
    for entry in entries:
        outcome = made.do(entry)
        assert outcome.changed, outcome
    return made


def said(outcome: Outcome) -> Result | Code:
    """The outcome in one word."""
    return outcome.code or outcome.result


def after_seqs(count: int, *, epoch: int = 0) -> Replica:
    """A stream to which producer p wrote batches 0 … count - 1 of `epoch`, one record each."""
    return replica(create(), *[append(b"%d" % seq, producer=("p", epoch, seq)) for seq in range(count)])
