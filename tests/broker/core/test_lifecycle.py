"""R10, R43: whatever happens to a session at once happens in one order, and nothing of it is lost, doubled or mixed up.

Hypothesis draws the schedule: which client's step comes next, among openings, writes, finishes, stops, resets, deletes
and forks of two sessions, with the two entries of a fork apart. A dumb model says what each step must come to.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.core.fork import lineage_of, unref_entry
from broker.core.outcome import Outcome, Result
from broker.core.page import before, records
from broker.core.state import Session, Stream, session_key, stream_key
from broker.http.session_forks import Heritage
from consumer.session import SessionFold
from tests.broker.core import entries
from tests.broker.core.lifecycle_model import SessionModel, is_open
from tests.broker.core.replica import Replica, replayed

PATHS = ("sessions/a", "sessions/b")

paths = st.sampled_from([PATHS[0], *PATHS])
generation_ids = st.sampled_from(["g1", "g2", "g3", "g4"])
seqs = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
lanes = st.sampled_from(["main", "main", "side"])
predecessors = st.sampled_from(["", "", "g1", "g2", "g3"])
texts = st.lists(st.sampled_from(["x", "y"]), min_size=1, max_size=2)
rarely = st.integers(0, 2).map(lambda number: number == 0)
which = st.integers(0, 3)


def word(outcome: Outcome) -> str:
    return outcome.code.value if outcome.code is not None else outcome.result.name.lower()


def content(replica: Replica, path: str) -> list[bytes]:
    """All records of the stream at `path`, those that it inherits included."""
    stream = replica.stream(path)
    parts = [(segment.path, segment.incarnation, segment.end) for segment in stream.lineage]
    found: list[bytes] = []
    for part_path, life, end in [*parts, (path, stream.incarnation, stream.tail)]:
        for page in replica.pages.get((part_path, life), []):
            if len(found) <= page.start < end:
                found += records(before(page, end))
    return found


def told(record: bytes) -> tuple[str, str, str]:
    """A record as the model has it."""
    event = json.loads(record)
    what = event["value"].get("chunk") if event["type"] == "chunk" else event["value"].get("status", "")
    return event["type"], event["key"], what


class Races(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Replica()
        self.models: dict[str, SessionModel | None] = dict.fromkeys(PATHS)
        self.fences: dict[tuple[int, str], int] = {}  # by birth and lane
        self.begun: list[tuple[Any, Any, Heritage, SessionModel]] = []  # forks whose source has agreed
        self.kept: dict[int, tuple[str, int]] = {}  # by life of a fork: whose records it needs
        for path in PATHS[:1]:
            self.create(path)

    def teardown(self) -> None:
        again = replayed(self.replica.history)
        assert (again.rows, again.pages, again.ended) == (
            self.replica.rows,
            self.replica.pages,
            self.replica.ended,
        )

    def both(self, entry: Any, expected: str | None) -> None:
        assert word(self.replica.do(entry)) == (expected or "SESSION_NOT_FOUND")

    def is_kept(self, path: str) -> bool:
        """Whether a session that was deleted there is still needed by forks."""
        return stream_key(path) in self.replica.rows and self.models[path] is None

    # -- one session ----------------------------------------------------------------------------------------------

    @rule(path=paths)
    def create(self, path: str) -> None:
        expected = "unchanged" if self.models[path] else "SESSION_EXISTS" if self.is_kept(path) else "created"
        self.both(entries.create_session(path=path), expected)
        if expected == "created":
            self.models[path] = SessionModel(self.replica.stream(path).incarnation)

    @rule(path=paths, really=rarely)
    def delete(self, path: str, *, really: bool) -> None:
        if really:
            self.both(entries.delete_session(path=path), "accepted" if self.models[path] else None)
            self.models[path] = None

    @rule(path=paths, really=rarely)
    def reset(self, path: str, *, really: bool) -> None:
        if not really and not self.kept:  # where there are forks, it is worth a try
            return
        model = self.models[path]
        self.both(entries.reset_session(path=path), "accepted" if model else None)
        if model:
            model.reset(self.replica.stream(path).incarnation)

    @rule(path=paths, message_id=st.sampled_from(["u1", "g1"]))
    def say(self, path: str, message_id: str) -> None:
        model = self.models[path]
        self.both(entries.message(message_id, path=path), model.say(message_id) if model else None)

    @rule(path=paths, generation_id=generation_ids, lane=lanes, continues=predecessors, yields=st.booleans())
    def open(self, path: str, generation_id: str, lane: str, continues: str, *, yields: bool) -> None:
        entry = entries.open_generation(generation_id, path=path, lane=lane, continues=continues, yields=yields)
        model = self.models[path]
        if model and generation_id in model.generations:
            outcome = self.replica.do(entry)
            assert outcome.result in (Result.UNCHANGED, Result.REFUSED)
            return
        lane = "" if continues and lane == "main" else lane
        expected = model.open(generation_id, lane, continues, yields=yields, status="pending") if model else None
        self.both(entry, expected)

    @rule(path=paths, generation_id=generation_ids, seq=seqs, lane=lanes, continues=predecessors, chunks=texts)
    def write(self, path: str, generation_id: str, seq: int, lane: str, continues: str, chunks: list[str]) -> None:
        bodies = [json.dumps(chunk).encode() for chunk in chunks]
        entry = entries.chunks(generation_id, seq, *bodies, path=path, lane=lane, continues=continues)
        lane = "" if continues and lane == "main" else lane
        model = self.models[path]
        self.both(entry, model.write(generation_id, seq, lane, continues, chunks, "") if model else None)

    @rule(path=paths, generation_id=generation_ids, seq=seqs, status=st.sampled_from(["complete", "failed"]))
    def finish(self, path: str, generation_id: str, seq: int, status: str) -> None:
        model = self.models[path]
        expected = model.write(generation_id, seq, "main", "", [], status) if model else None
        self.both(entries.finish(generation_id, seq, path=path, status=status), expected)

    @rule(path=paths, generation_id=generation_ids)
    def stop(self, path: str, generation_id: str) -> None:
        model, expected = self.models[path], None
        if model:
            known = generation_id in model.generations
            stopped = model.stop(lambda name, _: name == generation_id)
            expected = "accepted" if stopped else "unchanged" if known else "GENERATION_NOT_FOUND"
        self.both(entries.stop(generation_id, path=path), expected)

    @rule(path=paths, lane=st.sampled_from(["", "main", "side"]))
    def stop_all(self, path: str, lane: str) -> None:
        model = self.models[path]
        expected = None
        if model:
            expected = "accepted" if model.stop(lambda _, each: lane in ("", each.lane)) else "unchanged"
        self.both(entries.stop_session(lane, path=path), expected)

    # -- clients that know what they do: most steps of the others are refused ----------------------------------------

    @rule(path=paths, chunks=texts, lane=lanes)
    def begin(self, path: str, chunks: list[str], lane: str) -> None:
        self.write(path, f"n{self.replica.index}", 0, lane, "", chunks)

    @rule(path=paths, number=which, chunks=texts)
    def go_on(self, path: str, number: int, chunks: list[str]) -> None:
        """Back after a crash: whatever became of the generation, another one continues it."""
        model = self.models[path]
        if model and model.generations:
            before = list(model.generations)[-1 - number % len(model.generations)]
            self.write(path, f"n{self.replica.index}", 0, "main", before, chunks)

    @rule(path=paths, number=which, chunks=texts, last=st.booleans())
    def next_batch(self, path: str, number: int, chunks: list[str], *, last: bool) -> None:
        model = self.models[path]
        running = [name for name, each in model.generations.items() if is_open(each)] if model else []
        if model and running:
            name = running[number % len(running)]
            seq = len(model.generations[name].batches)
            if last:
                self.finish(path, name, seq, "failed")
            else:
                self.write(path, name, seq, "main", "", chunks)

    # -- forks: two entries, and whatever comes between them --------------------------------------------------------

    @rule()
    def begin_fork(self) -> None:
        """The source agrees, at its present end."""
        model = self.models[PATHS[0]]
        if model is None or len(self.begun) > 1:
            return
        heritage = Heritage()
        for record in content(self.replica, PATHS[0]):
            heritage.add(record)
        ref = entries.fork_ref(PATHS[1], 500_000 + self.replica.index, path=PATHS[0])
        agreed = self.replica.do(ref)
        assert agreed.result is Result.ACCEPTED
        self.begun.append((ref, agreed, heritage, deepcopy(model)))

    @rule()
    def end_fork(self) -> None:
        if not self.begun:
            return
        ref, agreed, heritage, model = self.begun.pop(0)
        entry = entries.fork_session(
            ref.nonce,
            path=PATHS[1],
            source_path=ref.path,
            lineage=lineage_of(agreed.stream, ref.path, agreed.next_position),
            messages=tuple(heritage.messages.values()),
            generations=tuple(heritage.generations.values()),
            selector=str(ref.nonce),
        )
        expected = "SESSION_EXISTS" if self.models[PATHS[1]] or self.is_kept(PATHS[1]) else "created"
        self.both(entry, expected)
        if expected == "created":
            self.models[PATHS[1]] = model.forked(ref.nonce)
            self.kept[ref.nonce] = (ref.path, agreed.stream.incarnation)
        else:
            self.both(unref_entry(ref.path, agreed.stream.incarnation, PATHS[1], ref.nonce), "accepted")

    @rule()
    def sweeper_tells_sources_of_forks_that_are_gone(self) -> None:
        ended = {life for _, life in self.replica.ended}
        for life in [life for life in self.kept if life in ended]:
            self.both(unref_entry(*self.kept.pop(life), PATHS[1], life), "accepted")

    # -- what must always hold ----------------------------------------------------------------------------------------

    @invariant()
    def every_session_has_the_records_of_its_model(self) -> None:
        for path, model in self.models.items():
            assert (session_key(path) in self.replica.rows) == (model is not None)
            if model:
                assert [told(record) for record in content(self.replica, path)] == model.records

    @invariant()
    def lane_and_message_have_one_writer_each_and_it_holds_the_fence(self) -> None:
        for session in self.sessions():
            fences = {lane.name: lane.epoch for lane in session.lanes}
            assert len({each.lane for each in session.open}) == len(session.open)
            assert len({each.message_id for each in session.open}) == len(session.open)
            assert all(fences[each.lane] == each.fence for each in session.open)
        for path, model in self.models.items():
            if model:
                opened = {each.generation_id for each in self.replica.session(path).open}
                assert opened == {name for name, each in model.generations.items() if is_open(each)}

    @invariant()
    def fences_only_rise(self) -> None:
        for session in self.sessions():
            for lane in session.lanes:
                known = (session.birth, lane.name)
                assert lane.epoch >= self.fences.get(known, 0)
                self.fences[known] = lane.epoch

    @invariant()
    def every_log_folds_without_a_flaw_to_what_was_written(self) -> None:
        for path, model in self.models.items():
            if model is None:
                continue
            fold = SessionFold()
            for record in content(self.replica, path):
                fold.add(record)
            assert (fold.malformed, fold.is_whole) == (0, True)
            written = dict.fromkeys(model.messages, "")
            for kind, key, what in model.records:
                if kind == "chunk":
                    written[model.generations[key.rpartition(":")[0]].message_id] += what
            assert {str(item["id"]): text(item) for item in fold.items()} == written

    @invariant()
    def what_forks_read_is_never_taken_away(self) -> None:
        ended = set(self.replica.ended)
        for path in PATHS:
            row = self.replica.rows.get(stream_key(path))
            if isinstance(row, Stream):
                assert not {(part.path, part.incarnation) for part in row.lineage} & ended

    def sessions(self) -> list[Session]:
        rows = [self.replica.rows.get(session_key(path)) for path in PATHS]
        return [row for row in rows if isinstance(row, Session)]


def text(item: Any) -> str:
    if "generationId" not in item:
        return ""
    return "".join(part["text"] for part in item["message"]["parts"])


TestR10EverythingInTheLifeOfASessionIsSerialised = Races.TestCase
TestR10EverythingInTheLifeOfASessionIsSerialised.settings = settings(max_examples=80, stateful_step_count=40)


# -- an active stream ------------------------------------------------------------------------------------------------

interruptions = st.sampled_from(["reset", "delete", "fork", "supersede", "stop"])


@settings(max_examples=80)
@given(st.data())
def test_r43_reset_and_delete_racing_an_active_stream_neither_reorder_nor_corrupt_it(data: st.DataObject) -> None:
    """R43: a pipelining writer whose batches arrive in any order, some twice, while the session is taken from under it.

    What was accepted is there in order without a hole, up to the interruption; behind it nothing of that writer is.
    """
    batches = [entries.chunks("g", seq, b'"%d"' % seq) for seq in range(8)]
    arriving = data.draw(st.permutations(batches * 2))
    cut, how = data.draw(st.integers(0, len(arriving))), data.draw(interruptions)
    replica = Replica()
    replica.do(entries.create_session())
    accepted = [batch.seq for batch in arriving[:cut] if word(replica.do(batch)) == "accepted"]
    assert accepted == list(range(len(accepted)))
    held, life = content(replica, entries.SESSION), replica.stream(entries.SESSION).incarnation

    interrupt(replica, how)
    after = [word(replica.do(batch)) for batch in arriving[cut:]]

    if how == "fork" or not accepted:
        return
    assert "accepted" not in after or how == "delete"
    pages = replica.pages.get((entries.SESSION, life), [])
    assert [record for page in pages for record in records(page)][: len(held)] == held
    numbers = [key for kind, key, _ in map(told, held) if kind == "chunk"]
    assert numbers == [f"g:{seq}" for seq in accepted]
    if how in ("reset", "delete"):
        assert not holes(replica)


def interrupt(replica: Replica, how: str) -> None:
    """Take the session from under its writer; it is there again after that."""
    match how:
        case "reset":
            replica.do(entries.reset_session())
        case "delete":
            replica.do(entries.delete_session())
            replica.do(entries.create_session())
        case "supersede":
            replica.do(entries.chunks("newer", 0, b'"n"'))
        case "stop":
            replica.do(entries.stop_session())
        case "fork":
            assert replica.do(entries.fork_ref("sessions/c", 7, path=entries.SESSION)).changed


def holes(replica: Replica) -> bool:
    """Whether the present life has chunks that do not begin at 0 and count on."""
    keys = [key for kind, key, _ in map(told, content(replica, entries.SESSION)) if kind == "chunk"]
    return keys != [f"g:{number}" for number in range(len(keys))]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_r10_two_that_go_on_with_the_same_answer_do_not_both_get_it(schedule: list[tuple[int, bool]]) -> None:
    """Clients that come back after a crash, each sure to be the only one."""
    replica = Replica()
    for entry in (entries.create_session(), entries.chunks("g", 0, b'"a"'), entries.stop("g")):
        replica.do(entry)
    made = [
        word(replica.do(entries.open_generation(f"h{who}", continues="g", yields=yields))) for who, yields in schedule
    ]
    assert made.count("created") == min(1, len(schedule))
    assert set(made) <= {"created", "unchanged", "GENERATION_MISMATCH", "FENCED"}
