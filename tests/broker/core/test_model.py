"""`apply` against the dumb model: the same steps, the same outcomes, the same content; and what must always hold.

Every step also goes through the checks of `Replica`: deterministic, rows named by `keys`, nothing changed by a refusal.
"""

from __future__ import annotations

import json

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.core.entry import Entry
from broker.core.outcome import Outcome
from broker.core.state import stream_key
from tests.broker.core import entries
from tests.broker.core.entries import Triple
from tests.broker.core.model import SessionModel, StreamsModel
from tests.broker.core.replica import BEGIN_MS, Replica, replayed

paths = st.sampled_from(["a", "b"])
kinds = st.sampled_from(["application/json"] * 4 + ["text/plain"])
ttls = st.sampled_from([None, None, 1])
batches = st.lists(st.sampled_from([b"1", b'"x"', b"{}"]), min_size=1, max_size=2).map(tuple)
producers = st.none() | st.tuples(st.sampled_from(["p", "q"]), st.integers(0, 1), st.integers(0, 3))
stream_seqs = st.sampled_from(["", "", "", "a", "b", "c"])
steps_ms = st.sampled_from([0, 0, 0, 100, 600, 1100])
more = settings(max_examples=80, stateful_step_count=40)


def word(outcome: Outcome) -> str:
    """The outcome as the model says it."""
    return outcome.code.value if outcome.code is not None else outcome.result.name.lower()


class Replayed(RuleBasedStateMachine):
    """Whatever was done: a replay of the journal's bytes from nothing makes the same rows and pages."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Replica()

    def teardown(self) -> None:
        again = replayed(self.replica.history)
        assert again.rows == self.replica.rows
        assert again.pages == self.replica.pages
        assert again.ended == self.replica.ended


class Streams(Replayed):
    """Raw streams: two paths, two producers, batches in any order, lost and resent, closes, deletes, expiry."""

    def __init__(self) -> None:
        super().__init__()
        self.model = StreamsModel()
        self.sent: list[Entry] = []

    def both(self, entry: Entry, expected: str) -> None:
        assert word(self.replica.do(entry)) == expected

    @rule(by_ms=steps_ms)
    def time_passes(self, by_ms: int) -> None:
        self.replica.now_ms += by_ms
        self.model.now_ms += by_ms

    @rule(
        path=paths, kind=kinds, ttl_s=ttls, records=st.just(()) | batches, closed=st.sampled_from([False] * 4 + [True])
    )
    def create(self, path: str, kind: str, ttl_s: int | None, records: tuple[bytes, ...], *, closed: bool) -> None:
        entry = entries.create(*records, path=path, content_type=kind, ttl_s=ttl_s, closed=closed)
        self.both(entry, self.model.create(path, kind, ttl_s, records, closed=closed))

    @rule(path=paths, kind=kinds, records=batches, producer=producers, seq=stream_seqs, closes=st.integers(0, 9))
    def append(
        self, path: str, kind: str, records: tuple[bytes, ...], producer: Triple | None, seq: str, closes: int
    ) -> None:
        entry = entries.append(
            *records, path=path, content_type=kind, producer=producer, stream_seq=seq or None, closes=closes == 0
        )
        self._append(entry, path, kind, records, producer, seq, closes=closes == 0)

    @rule(path=paths, producer=producers, again=st.integers(0, 5))
    def close(self, path: str, producer: Triple | None, again: int) -> None:
        if again == 0:
            self._append(entries.close(path=path, producer=producer), path, "", (), producer, "", closes=True)

    @rule(path=paths, name=st.sampled_from(["p", "q"]), epoch=st.integers(0, 1), count=st.integers(1, 4))
    def pipeline(self, path: str, name: str, epoch: int, count: int) -> None:
        """A well-behaved producer that resends all it ever sent: each batch lands once."""
        for seq in range(count):
            record = b'"%s %d"' % (name.encode(), seq)
            entry = entries.append(record, path=path, producer=(name, epoch, seq))
            self._append(entry, path, "application/json", (record,), (name, epoch, seq), "", closes=False)

    def _append(
        self,
        entry: Entry,
        path: str,
        kind: str,
        records: tuple[bytes, ...],
        producer: Triple | None,
        seq: str,
        *,
        closes: bool,
    ) -> None:
        stream = self.model.find(path)
        expected = "STREAM_NOT_FOUND"
        if stream is not None:
            expected = stream.append(kind, records, producer, seq, closes=closes, now_ms=self.model.now_ms)
        self.both(entry, expected)

    @rule(path=paths, really=st.integers(0, 5))
    def delete(self, path: str, really: int) -> None:
        if really == 0:
            self.both(entries.delete(path=path), self.model.delete(path))

    @rule(path=paths)
    def touch(self, path: str) -> None:
        self.both(entries.touch(path=path), self.model.touch(path))

    @rule(path=paths)
    def expire(self, path: str) -> None:
        self.both(entries.expire(path=path), self.model.expire(path))

    @invariant()
    def every_stream_has_the_content_of_its_model(self) -> None:
        assert self.replica.now_ms - BEGIN_MS == self.model.now_ms
        for path, stream in self.model.streams.items():
            assert self.replica.records(path) == stream.records
            assert self.replica.stream(path).tail == len(stream.records)
            assert self.replica.stream(path).closed == stream.closed
            assert self.replica.stream(path).producers == len({made[0] for made, _ in stream.batches})
        assert {path for path in ("a", "b") if stream_key(path) in self.replica.rows} == set(self.model.streams)


generation_ids = st.sampled_from(["g1", "g2", "g3"])
seqs = st.integers(0, 4)
statuses = st.sampled_from(["complete", "failed", "aborted"])
lanes = st.sampled_from(["main", "main", "side"])


class Sessions(Replayed):
    """One session: messages, generations in two lanes, batches in any order, every way to end one, deletes."""

    def __init__(self) -> None:
        super().__init__()
        self.model: SessionModel | None = None
        self.looked: dict[str, tuple[int, int]] = {}  # what a sweeper saw: fence and index of the last renewal

    def both(self, entry: Entry, expected: str) -> None:
        assert word(self.replica.do(entry)) == expected

    @rule()
    def create(self) -> None:
        self.both(entries.create_session(), "created" if self.model is None else "unchanged")
        self.model = self.model or SessionModel()

    @rule(really=st.integers(0, 9))
    def delete(self, really: int) -> None:
        if really == 0:
            self.both(entries.delete_session(), "SESSION_NOT_FOUND" if self.model is None else "accepted")
            self.model = None
            self.looked.clear()

    @rule(message_id=st.sampled_from(["m1", "g1"]), body=st.sampled_from([b"{}", b"[]"]))
    def message(self, message_id: str, body: bytes) -> None:
        expected = self.model.message(message_id, body) if self.model else "SESSION_NOT_FOUND"
        self.both(entries.message(message_id, body), expected)

    @rule(generation_id=generation_ids, seq=seqs, lane=lanes, chunks=batches)
    def chunks(self, generation_id: str, seq: int, lane: str, chunks: tuple[bytes, ...]) -> None:
        expected = "SESSION_NOT_FOUND"
        if self.model:
            expected = self.model.write(generation_id, seq, generation_id, lane, chunks, "")
        self.both(entries.chunks(generation_id, seq, *chunks, lane=lane), expected)

    @rule(generation_id=generation_ids, seq=seqs, status=statuses)
    def finish(self, generation_id: str, seq: int, status: str) -> None:
        expected = "SESSION_NOT_FOUND"
        if self.model:
            expected = self.model.write(generation_id, seq, generation_id, "main", (), status)
        self.both(entries.finish(generation_id, seq, status=status), expected)

    @rule(generation_id=generation_ids)
    def stop(self, generation_id: str) -> None:
        self.both(entries.stop(generation_id), self.model.stop(generation_id) if self.model else "SESSION_NOT_FOUND")

    @rule(generation_id=generation_ids)
    def heartbeat(self, generation_id: str) -> None:
        expected = self.model.heartbeat(generation_id) if self.model else "SESSION_NOT_FOUND"
        self.both(entries.heartbeat(generation_id), expected)

    @rule()
    def sweeper_looks(self) -> None:
        if self.model:
            for generation in self.replica.session(entries.SESSION).open:
                self.looked[generation.generation_id] = (generation.fence, generation.renewed_index)

    @rule(generation_id=generation_ids)
    def sweeper_ends_the_lease_it_saw(self, generation_id: str) -> None:
        seen = self.looked.get(generation_id, (1, 0))
        expected = "SESSION_NOT_FOUND"
        if self.model:
            now = [(g.fence, g.renewed_index) for g in self.replica.session(entries.SESSION).open]
            expected = self.model.expire_lease(generation_id, unchanged=seen in now)
        self.both(entries.expire_lease(generation_id, *seen), expected)

    @invariant()
    def session_has_the_records_of_its_model(self) -> None:
        if self.model is None:
            assert stream_key(entries.SESSION) not in self.replica.rows
            return
        assert [told(record) for record in self.replica.records(entries.SESSION)] == self.model.records

    @invariant()
    def one_generation_is_open_in_a_lane_and_it_holds_the_fence(self) -> None:
        if self.model is None:
            return
        session = self.replica.session(entries.SESSION)
        fences = {lane.name: lane.epoch for lane in session.lanes}
        assert len({generation.lane for generation in session.open}) == len(session.open)
        assert all(fences[generation.lane] == generation.fence for generation in session.open)
        assert {generation.generation_id for generation in session.open} == {
            generation_id
            for generation_id, generation in self.model.generations.items()
            if generation.status == "streaming"
        }


def told(record: bytes) -> tuple[str, str, str]:
    """A record as the model has it."""
    event = json.loads(record)
    value = event["value"]
    if event["type"] == "chunk":
        return "chunk", event["key"], json.dumps(value["chunk"])
    if event["type"] == "message":
        return "message", event["key"], json.dumps(value)
    return event["type"], event["key"], value.get("status", "")


TestStreams = Streams.TestCase
TestStreams.settings = more
TestSessions = Sessions.TestCase
TestSessions.settings = more
