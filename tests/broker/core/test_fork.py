"""broker/core/fork.py: PROTOCOL.md 4.2 and CORE 8, as two entries and a set of children in the source's row."""

import pytest
from hypothesis import given, strategies as st

from broker.core.entry import Entry
from broker.core.fork import lineage_of
from broker.core.offset import format_offset
from broker.core.outcome import Result
from broker.core.state import Stream, stream_key
from consumer.wire import Code
from tests.broker.core.entries import PATH, append, create, delete, fork, fork_ref, fork_unref
from tests.broker.core.replica import BEGIN_MS, Replica, replica, said

SOURCE, CHILD = 0xA, 0xC
KID = "kid"
INHERITED = ((PATH, SOURCE, 2),)
OFFSET = format_offset(2, SOURCE)


def source(*entries: Entry) -> Replica:
    """A source of three records on which these were applied, all with success."""
    return replica(create(b"0", b"1", b"2", nonce=SOURCE), *entries)


REF = fork_ref(KID, CHILD, offset=OFFSET)
FORK = fork(b'"own"', path=KID, child=CHILD, lineage=INHERITED)


def test_fork_begins_where_it_parts_and_holds_only_what_is_its_own() -> None:
    made = source(REF)
    outcome = made.do(FORK)
    assert (outcome.result, outcome.next_position) == (Result.CREATED, 3)
    child = made.stream(KID)
    assert (child.begin, child.tail, child.incarnation) == (2, 3, CHILD)
    assert made.records(KID) == [b'"own"']
    assert made.do(append(b"more", path=KID)).next_position == 4


def test_fork_speaks_its_sources_tokens_up_to_where_they_part_and_its_own_after() -> None:
    """CORE 3."""
    child = source(REF, FORK).stream(KID)
    assert [child.offset(position) for position in (0, 2, 3)] == [
        format_offset(0, SOURCE),
        format_offset(2, SOURCE),
        format_offset(3, CHILD),
    ]
    assert child.position(format_offset(3, CHILD)) == 3
    assert child.position(format_offset(3, SOURCE)) is None
    assert child.position(format_offset(1, CHILD)) is None


@pytest.mark.parametrize(
    ("ref", "position"),
    [
        (fork_ref(KID, CHILD), 3),
        (fork_ref(KID, CHILD, offset=format_offset(0, 0)), 0),
        (fork_ref(KID, CHILD, offset=format_offset(1, SOURCE)), 1),
        (fork_ref(KID, CHILD, offset=format_offset(1, SOURCE), sub_offset=2), 3),
    ],
)
def test_position_of_a_fork_is_the_tail_or_what_the_offsets_name(ref: Entry, position: int) -> None:
    outcome = source().do(ref)
    assert (outcome.result, outcome.next_position) == (Result.ACCEPTED, position)


@pytest.mark.parametrize(
    ("ref", "code"),
    [
        (fork_ref(KID, CHILD, path="nowhere"), Code.STREAM_NOT_FOUND),
        (fork_ref(KID, CHILD, offset=format_offset(4, SOURCE)), Code.INVALID_OFFSET),
        (fork_ref(KID, CHILD, offset=OFFSET, sub_offset=2), Code.INVALID_OFFSET),
        (fork_ref(KID, CHILD, offset=format_offset(1, 0xBAD)), Code.INVALID_OFFSET),
        (fork_ref(KID, CHILD, offset="rubbish"), Code.INVALID_OFFSET),
        (fork_ref(KID, CHILD, content_type="text/plain"), Code.CONTENT_TYPE_MISMATCH),
        (fork_ref(KID, CHILD, forks_max=0), Code.TOO_MANY_FORKS),
    ],
)
def test_source_refuses_what_cannot_be_forked(ref: Entry, code: Code) -> None:
    """4.2 "Fork creation errors"; CORE 3: a token of another life is a 400 here."""
    assert said(source().do(ref)) is code


def test_every_step_may_come_twice() -> None:
    """CORE 8: all idempotent, so a crash between any two heals."""
    made = source(REF)
    assert said(made.do(REF)) is Result.UNCHANGED
    made.do(FORK)
    assert said(made.do(FORK)) is Result.UNCHANGED
    made.do(delete(path=KID))
    unref = fork_unref(KID, CHILD)
    assert [said(made.do(unref)), said(made.do(unref))] == [Result.ACCEPTED, Result.UNCHANGED]
    assert made.stream(PATH).children == ()


def test_child_that_comes_after_its_deadline_never_comes() -> None:
    """CORE 8: a deadline in its partition's time; then the note at the source may be taken away."""
    late = fork(path=KID, child=CHILD, lineage=INHERITED, deadline_ms=BEGIN_MS + 10)
    made = source(REF)
    assert said(made.do(late, after_ms=11)) is Code.UNAVAILABLE
    assert stream_key(KID) not in made.rows


def test_path_that_is_taken_is_not_forked_onto() -> None:
    made = source(create(path=KID), REF)
    assert said(made.do(FORK)) is Code.STREAM_EXISTS


def test_deleted_source_lives_on_for_its_forks_and_answers_as_gone() -> None:
    """4.2 "Soft-delete and lifecycle": 410 to everything, 409 to PUT or as a fork's source."""
    made = source(REF, FORK)
    assert said(made.do(delete())) is Result.ACCEPTED
    assert made.stream(PATH).deleted
    assert made.ended == []
    assert [said(made.do(entry)) for entry in (append(b"x"), delete(), create(), fork_ref("other", 0xD))] == [
        Code.STREAM_GONE,
        Code.STREAM_GONE,
        Code.STREAM_EXISTS,
        Code.FORK_SOURCE_GONE,
    ]


def test_last_fork_that_goes_takes_the_deleted_source_with_it() -> None:
    made = source(REF, fork_ref("other", 0xD), FORK, delete())
    made.do(fork_unref("other", 0xD))
    assert made.stream(PATH).deleted
    made.do(fork_unref(KID, CHILD))
    assert stream_key(PATH) not in made.rows
    assert made.ended == [(PATH, SOURCE)]


def test_expired_source_lives_on_for_its_forks() -> None:
    made = Replica()
    made.do(create(b"0", b"1", ttl_s=1, nonce=SOURCE))
    made.do(REF)
    assert said(made.do(append(b"x"), after_ms=1100)) is Code.STREAM_GONE
    assert made.stream(PATH).deleted
    assert made.ended == []


def test_fork_inherits_no_producers() -> None:
    """4.2 "Producer state and fork boundaries"."""
    made = source(append(b"3", producer=("p", 5, 0)), REF, FORK)
    assert said(made.do(append(b"x", path=KID, producer=("p", 0, 0)))) is Result.ACCEPTED


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 4), st.data())
def test_lineage_of_a_chain_of_forks_finds_every_record(own: list[int], first: int, data: st.DataObject) -> None:
    """Against lists: each stream of a chain is a prefix of the one before and some records of its own."""
    stream, path = Stream(1, "t", 0, 0, tail=first), "0"
    content = [("0", 1)] * first
    for number, count in enumerate(own, 2):
        position = data.draw(st.integers(0, stream.tail))
        lineage = lineage_of(stream, path, position)
        made = Replica()
        made.do(fork(path="c", child=number, lineage=lineage, source_path=path))
        path = str(number)
        content = [*content[:position], *[(path, number)] * count]
        stream = Stream(number, "t", 0, 0, tail=position + count, lineage=made.stream("c").lineage)
        found, begin = [], 0
        for segment in stream.lineage:
            found += [(segment.path, segment.incarnation)] * (segment.end - begin)
            begin = segment.end
        assert found + [(path, number)] * (stream.tail - begin) == content
