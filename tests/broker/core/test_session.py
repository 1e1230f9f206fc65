"""broker/core/session.py: DESIGN 5 and CORE 7: what a session's entries do, and the bytes of its records."""

import json

import pytest

from broker.core.entry import Entry, Kind
from broker.core.events import timestamp
from broker.core.outcome import Result
from broker.core.state import Session, generation_key, session_key, stream_key
from consumer.wire import Code
from tests.broker.core.entries import (
    SESSION,
    append,
    chunks,
    create_session,
    delete_session,
    expire_lease,
    expire_session,
    finish,
    fork_ref,
    heartbeat,
    message,
    open_generation,
    reset_session,
    stop,
)
from tests.broker.core.replica import BEGIN_MS, Replica
from tests.broker.core.sessions import replica, said, shapes

# -- sessions --------------------------------------------------------------------------------------------------------


def test_session_is_created_with_its_stream() -> None:
    made = Replica()
    outcome = made.do(create_session(metadata=b'{"a":1}'))
    assert (outcome.result, outcome.next_position) == (Result.CREATED, 0)
    assert made.stream(SESSION).is_json
    session = made.session(SESSION)
    assert session.metadata == b'{"a":1}'
    assert session.birth != made.stream(SESSION).incarnation  # a reset ends the one and keeps the other


def test_session_and_its_first_message_are_one_entry() -> None:
    """DESIGN 5: nothing half-made."""
    made = Replica()
    assert made.do(create_session("m1", b'{"id":"m1"}')).next_position == 1
    assert shapes(made) == ["message m1 insert"]


@pytest.mark.parametrize("again", [create_session(), create_session("m1", b'{"id":"m1"}')])
def test_create_of_a_session_that_is_there_succeeds_and_changes_nothing(again: Entry) -> None:
    made = Replica()
    made.do(create_session("m1", b'{"id":"m1"}'))
    outcome = made.do(again)
    assert (outcome.result, outcome.next_position) == (Result.UNCHANGED, 1)


def test_create_with_another_first_message_is_refused() -> None:
    made = Replica()
    made.do(create_session("m1", b'{"id":"m1"}'))
    assert said(made.do(create_session("m1", b'{"id":"m1","x":1}'))) is Code.MESSAGE_EXISTS
    assert said(made.do(create_session("m2", b'{"id":"m2"}'))) is Code.SESSION_EXISTS


@pytest.mark.parametrize(
    "entry",
    [
        message("m"),
        chunks("g", 0, b"1"),
        finish("g", 0),
        stop("g"),
        heartbeat("g"),
        expire_lease("g", 1, 1),
        delete_session(),
    ],
    ids=lambda entry: Kind(entry.kind).name,
)
def test_entry_for_a_session_that_is_not_there_is_refused(entry: Entry) -> None:
    assert said(Replica().do(entry)) is Code.SESSION_NOT_FOUND


def test_deleted_session_is_gone_with_its_stream() -> None:
    made = replica(message("m"), chunks("g", 0, b"1"))
    birth = made.session(SESSION).birth
    assert said(made.do(delete_session())) is Result.ACCEPTED
    assert session_key(SESSION) not in made.rows
    assert stream_key(SESSION) not in made.rows
    assert (SESSION, birth) in made.ended


def test_session_that_nobody_has_used_for_so_long_expires() -> None:
    made = replica()
    birth = made.session(SESSION).birth
    assert said(made.do(expire_session(unused_ms=1_000), after_ms=998)) is Result.UNCHANGED
    assert said(made.do(expire_session(unused_ms=1_000), after_ms=1_000)) is Result.ACCEPTED
    assert session_key(SESSION) not in made.rows
    assert stream_key(SESSION) not in made.rows
    assert (SESSION, birth) in made.ended
    assert said(made.do(expire_session())) is Code.SESSION_NOT_FOUND


def test_session_that_was_opened_ahead_for_an_answer_that_never_came_expires() -> None:
    made = replica(open_generation("g"), expire_lease("g", 1, 2))
    assert said(made.do(expire_session(tail=2), after_ms=1_000)) is Result.ACCEPTED
    assert session_key(SESSION) not in made.rows


@pytest.mark.parametrize(
    "entries",
    [
        [message("m")],
        [open_generation("g")],
        [message("m"), reset_session(nonce=9)],
        [fork_ref("sessions/child", 7, path=SESSION)],
    ],
    ids=["written to since", "open", "used before its reset", "forked"],
)
def test_session_that_was_used_since_the_proposer_looked_does_not_expire(entries: list[Entry]) -> None:
    made = replica(*entries)
    before = dict(made.rows)
    assert said(made.do(expire_session(), after_ms=1 << 40)) is Result.UNCHANGED
    assert made.rows == before


def test_session_of_the_same_name_does_not_expire_for_the_one_before() -> None:
    made = replica()
    seen = made.stream(SESSION).incarnation
    made.do(delete_session())
    made.do(create_session())
    assert said(made.do(expire_session(incarnation=seen), after_ms=9_000)) is Code.SESSION_NOT_FOUND


def test_session_created_again_has_forgotten_everything() -> None:
    """Messages, generations open and ended, lanes and their fences."""
    made = replica(
        message("m"), chunks("g1", 0, b"1"), finish("g1", 1), chunks("g2", 0, b"1"), delete_session(), create_session()
    )
    assert made.records(SESSION) == []
    assert said(made.do(message("m", b'{"other":1}'))) is Result.ACCEPTED
    for generation_id in ("g2", "g1"):
        assert said(made.do(heartbeat(generation_id))) is Code.GENERATION_NOT_FOUND
        assert said(made.do(chunks(generation_id, 2, b"2"))) is Code.SEQ_GAP
    outcome = made.do(chunks("g1", 0, b"1"))
    assert (outcome.result, outcome.epoch) == (Result.ACCEPTED, 1)
    assert made.session(SESSION).open[0].chunks == 1


def test_last_activity_moves_with_what_is_accepted_only() -> None:
    made = replica(chunks("g", 0, b"1"))
    made.do(chunks("g", 0, b"1"), after_ms=10)
    made.do(chunks("g", 5, b"1"), after_ms=10)
    assert made.session(SESSION).active_ms == BEGIN_MS
    made.do(chunks("g", 1, b"2"), after_ms=10)
    assert made.session(SESSION).active_ms == BEGIN_MS + 30


# -- messages --------------------------------------------------------------------------------------------------------


def test_same_message_again_is_a_duplicate_that_is_told_where_it_stands() -> None:
    made = replica(message("m1"), message("m2"))
    outcome = made.do(message("m1"))
    assert (outcome.result, outcome.next_position) == (Result.DUPLICATE, 1)
    assert shapes(made) == ["message m1 insert", "message m2 insert"]


def test_message_id_with_other_content_is_refused() -> None:
    made = replica(message("m1"))
    assert said(made.do(message("m1", b'{"role":"tool"}'))) is Code.MESSAGE_EXISTS


def test_message_id_of_a_generation_is_taken() -> None:
    made = replica(chunks("g", 0, b"1", message_id="m"))
    assert said(made.do(message("m"))) is Code.MESSAGE_EXISTS


@pytest.mark.parametrize("taken", [message("m"), chunks("g1", 0, b"1", message_id="m", lane="side")])
def test_generation_cannot_write_a_message_that_exists(taken: Entry) -> None:
    made = replica(taken)
    assert said(made.do(chunks("g2", 0, b"1", message_id="m"))) is Code.MESSAGE_EXISTS
    assert generation_key(SESSION, "g2") not in made.rows


# -- the bytes of the records: part of the log, the same for ever ----------------------------------------------------


def test_bytes_of_a_message_record() -> None:
    made = replica(message("m1", b'{ "id":"m1", "parts":[1.0] }'), message("m2", b"{}", txid='t"1'))
    assert made.records(SESSION) == [
        (
            b'{"type":"message","key":"m1","value":{ "id":"m1", "parts":[1.0] },"headers":{"operation":"insert",'
            b'"timestamp":"2023-11-14T22:13:20.000Z"}}'
        ),
        (
            b'{"type":"message","key":"m2","value":{},"headers":{"operation":"insert","txid":"t\\"1",'
            b'"timestamp":"2023-11-14T22:13:20.000Z"}}'
        ),
    ]


def test_bytes_of_the_records_of_an_answer() -> None:
    made = Replica()
    made.do(create_session())
    made.do(chunks("g~1", 0, b'{"type":"text-delta","delta":"hi"}', b"1.50", message_id="m:1", actor_id="me", txid="t"))
    made.do(chunks("g~1", 1, b'"\xc3\xa9"'), after_ms=7)
    made.do(finish("g~1", 2, usage=b'{"out":3}'), after_ms=1000)
    assert made.records(SESSION) == [
        (
            b'{"type":"generation","key":"g~1","value":{"messageId":"m:1","lane":"main","fence":1,"role":"assistant",'
            b'"format":"text","status":"streaming","actorId":"me","createdAt":"2023-11-14T22:13:20.000Z"},'
            b'"headers":{"operation":"insert","txid":"t"}}'
        ),
        (
            b'{"type":"chunk","key":"g~1:0","value":{"messageId":"m:1","chunk":{"type":"text-delta","delta":"hi"}},'
            b'"headers":{"operation":"insert","txid":"t"}}'
        ),
        (
            b'{"type":"chunk","key":"g~1:1","value":{"messageId":"m:1","chunk":1.50},'
            b'"headers":{"operation":"insert","txid":"t"}}'
        ),
        (
            b'{"type":"chunk","key":"g~1:2","value":{"messageId":"m:1","chunk":"\xc3\xa9"},'
            b'"headers":{"operation":"insert"}}'
        ),
        (
            b'{"type":"generation","key":"g~1","value":{"messageId":"m:1","lane":"main","fence":1,"role":"assistant",'
            b'"format":"text","status":"complete","actorId":"me","usage":{"out":3},"createdAt":"2023-11-14T22:13:20.000Z",'
            b'"endedAt":"2023-11-14T22:13:21.007Z"},"headers":{"operation":"update"}}'
        ),
    ]


def test_bytes_of_a_failed_end() -> None:
    made = replica(chunks("g", 0, b"1"), finish("g", 1, status="failed", reason="r", error=b'"e"', metadata=b'{"m":2}'))
    assert made.records(SESSION)[-1] == (
        b'{"type":"generation","key":"g","value":{"messageId":"g","lane":"main","fence":1,"role":"assistant",'
        b'"format":"text","status":"failed","reason":"r","error":"e","metadata":{"m":2},'
        b'"createdAt":"2023-11-14T22:13:20.000Z","endedAt":"2023-11-14T22:13:20.000Z"},'
        b'"headers":{"operation":"update"}}'
    )


def test_bytes_of_a_stop_record() -> None:
    made = replica(chunks("g", 0, b"1", message_id="m"))
    made.do(stop("g", requested_by="me", reason="enough", txid="t"))
    assert made.records(SESSION)[2] == (
        b'{"type":"stop","key":"g","value":{"messageId":"m","requestedBy":"me","reason":"enough",'
        b'"createdAt":"2023-11-14T22:13:20.000Z"},"headers":{"operation":"insert","txid":"t"}}'
    )


def test_bytes_of_a_stop_record_that_says_no_more_than_it_must() -> None:
    made = replica(chunks("g", 0, b"1"), stop("g"))
    assert made.records(SESSION)[2] == (
        b'{"type":"stop","key":"g","value":{"messageId":"g","createdAt":"2023-11-14T22:13:20.000Z"},'
        b'"headers":{"operation":"insert"}}'
    )


def test_records_of_any_ids_are_json_that_says_what_was_meant() -> None:
    """The edge refuses such ids; the log must be whole all the same."""
    odd = 'a"b\\c:9\n\u2028é'
    made = replica(chunks(odd, 0, b"1", message_id=odd, lane=odd), stop(odd, reason=odd), message("m" + odd, txid=odd))
    events = [json.loads(record) for record in made.records(SESSION)]
    assert [event["key"] for event in events] == [odd, f"{odd}:0", odd, odd, f"m{odd}"]
    assert events[1]["value"]["messageId"] == odd
    assert events[4]["headers"]["txid"] == odd


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_timestamps_are_utc_with_milliseconds(time_ms: int, text: str) -> None:
    assert timestamp(time_ms) == text


def test_raw_append_to_a_session_is_not_part_of_it() -> None:
    """The edge answers 405 (CORE 7). Were one to come through, the session's own rows would not move."""
    made = replica()
    made.do(append(b"1", path=SESSION))
    row = made.rows[session_key(SESSION)]
    assert isinstance(row, Session)
    assert row.open == ()
