"""The audit of a cluster finds what it is there for: each of these replicas is right but for one thing."""

from collections.abc import Callable

import msgspec
import pytest

from broker.core.entry import Entry, encode as encode_entry
from broker.journal.cluster_record import Audit, Envelope, Mark, Meta, encode
from broker.journal.shared_log import LogRecord
from tests.broker.core import entries as e
from tests.broker.core.replica import BEGIN_MS
from tests.faults.cluster.raw_log import Replay
from tests.faults.cluster.replicas import Dump, Stored, differences, unlike_the_chain, unlike_the_log

UUID = b"u" * 16
ONE, TWO = 11, 22
"""The boots of two nodes."""
PATH = "json"


def log(*envelopes: Envelope) -> list[LogRecord]:
    first = Envelope(ONE, 0, meta=Meta(UUID, 0, 1))
    return [LogRecord(at, BEGIN_MS + at, encode(envelope)) for at, envelope in enumerate((first, *envelopes))]


def record(boot: int, number: int, *entries: Entry) -> Envelope:
    return Envelope(boot, number, tuple(map(encode_entry, entries)))


def append(text: str, seq: int) -> Entry:
    return e.append(text.encode(), path=PATH, producer=("p", 0, seq))


CREATE = record(ONE, 1, e.create(path=PATH, nonce=0xA1))
GOOD = log(
    CREATE,
    record(ONE, 2, append("1", 0), append("2", 1)),
    record(TWO, 1, append("9", 7)),  # refused: a gap
    record(TWO, 2, append("3", 2)),
)


def replay_of(records: list[LogRecord]) -> Replay:
    replay = Replay()
    replay.apply(records)
    return replay


def dump_of(replay: Replay) -> dict[str, Dump]:
    """What a node serves that made the same of the log."""
    return {
        path: Dump(200, replay.content(path), f"{stream.tail:016x}_{stream.incarnation:016x}", stream.closed)
        for path, stream in replay.streams()
    }


def test_replicas_that_are_what_the_log_makes_have_no_fault() -> None:
    replay = replay_of(GOOD)
    assert replay.content(PATH) == b"1,2,3"
    assert unlike_the_log([replay], dump_of(replay)) == []
    assert differences({"one": dump_of(replay), "two": dump_of(replay)}) == []


def content(data: bytes) -> Callable[[Dump], Dump]:
    return lambda dump: dump._replace(content=data)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(content(b"1,3"), id="lost"),
        pytest.param(content(b"1,2,2,3"), id="doubled"),
        pytest.param(content(b"2,1,3"), id="reordered"),
        pytest.param(content(b"1,2,9,3"), id="refused and visible"),
        pytest.param(content(b"1,2,4"), id="other bytes"),
        pytest.param(lambda dump: dump._replace(end=f"{4:016x}{dump.end[16:]}"), id="another end"),
        pytest.param(lambda dump: dump._replace(end=f"{dump.end[:17]}{7:016x}"), id="another life"),
        pytest.param(lambda dump: dump._replace(closed=True), id="closed"),
        pytest.param(lambda _: Dump(404), id="not there"),
    ],
)
def test_replica_with_one_fault_is_found(spoil: Callable[[Dump], Dump]) -> None:
    replay = replay_of(GOOD)
    good = dump_of(replay)
    bad = {**good, PATH: spoil(good[PATH])}
    assert len(unlike_the_log([replay], bad)) == 1
    assert len(differences({"one": good, "two": bad})) == 1


def test_stream_that_no_record_made_is_found() -> None:
    replay = replay_of(GOOD)
    assert unlike_the_log([replay], {**dump_of(replay), "other": Dump(200)}) == ["other is served, and not in the log"]


def test_messages_that_one_node_folds_otherwise_are_found() -> None:
    good = {"sessions/s": Dump(200, messages={"messages": [1]})}
    bad = {"sessions/s": Dump(200, messages={"messages": []})}
    assert differences({"one": good, "two": good, "three": bad})


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(record(ONE, 2, append("1", 0), append("2", 1)), id="a copy"),
        pytest.param(record(TWO, 1, append("9", 3)), id="a refused one, which would fit by now"),
    ],
)
def test_record_that_comes_again_counts_once(late: Envelope) -> None:
    replay = replay_of(GOOD)
    replay.apply([LogRecord(len(GOOD), BEGIN_MS + 9, encode(late))])
    assert (replay.content(PATH), replay.void) == (b"1,2,3", 1)


def test_record_of_a_boot_that_is_over_does_not_count() -> None:
    replay = replay_of(log(CREATE, Envelope(TWO, 1, retired=ONE), record(ONE, 2, append("1", 0))))
    assert (replay.content(PATH), replay.void) == (b"", 1)


def test_hole_in_the_log_is_found() -> None:
    assert replay_of([*GOOD[:2], *GOOD[3:]]).faults == ["position 3 comes after 1"]


def test_audit_with_another_chain_is_found() -> None:
    chain = replay_of(GOOD).chain
    right = replay_of([*GOOD, audit(Audit(UUID, len(GOOD), chain))])
    wrong = replay_of([*GOOD, audit(Audit(UUID, len(GOOD), chain[::-1]))])
    assert (right.audits, right.faults) == (1, [])
    assert len(wrong.faults) == 1
    assert wrong.losses == []


def test_audit_of_records_that_are_no_more_is_found_as_a_loss() -> None:
    replay = replay_of([*GOOD, audit(Audit(UUID, len(GOOD) + 1, b"of another log"))])
    assert replay.faults == []
    assert len(replay.losses) == 1


def audit(said: Audit) -> LogRecord:
    return LogRecord(len(GOOD), BEGIN_MS + 9, encode(Envelope(TWO, 3, audit=said)))


def test_store_that_stands_at_no_place_of_the_log_is_found() -> None:
    replay = replay_of(GOOD)
    mark = Mark(Meta(UUID, 0, 1), replay.position, replay.chain, b"", ONE)
    index = replay.state.index
    assert unlike_the_chain(replay, Stored(index, mark)) == []
    assert unlike_the_chain(replay, Stored(index - 1, mark))
    assert unlike_the_chain(replay, Stored(index, msgspec.structs.replace(mark, position=3)))
    assert unlike_the_chain(replay, Stored(index, msgspec.structs.replace(mark, chain=bytes(16))))
