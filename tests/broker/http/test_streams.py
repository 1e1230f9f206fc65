"""Requests to entries and outcomes to answers, both pure."""

import msgspec
import pytest

from broker import limits
from broker.core.entry import AppendOptions, CreateOptions, Entry, Kind, body_digest
from broker.core.offset import format_offset
from broker.core.outcome import Outcome, Result, refused
from broker.core.page import pack_lengths
from broker.core.state import Stream
from broker.http.problems import BadRequest, standing_of
from broker.http.request import Request
from broker.http.response import Response
from broker.http.streams import answer, entry_of, require_method
from consumer.wire import SEQ_MAX, Code

JSON_TYPE = {"content-type": "application/json"}
PRODUCER = {"producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
STREAM = Stream(incarnation=7, content_type="application/json", created_ms=0, active_ms=0, tail=9)


def request(method: str, headers: dict[str, str] | None = None, path: str = "a/b") -> Request:
    encoded = {name.encode(): value.encode("latin-1") for name, value in (headers or {}).items()}
    return Request(method, path, {b"host": b"h:1", **encoded}, target=f"/v1/stream/{path}".encode(), request_id="r1")


def entry(method: str, headers: dict[str, str], body: bytes) -> Entry:
    return entry_of(request(method, headers), body)


def options_of(entry: Entry) -> AppendOptions:
    return msgspec.msgpack.decode(entry.options, type=AppendOptions)


def creation_of(entry: Entry) -> CreateOptions:
    return msgspec.msgpack.decode(entry.options, type=CreateOptions)


def told(response: Response) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in response.headers}


# -- requests --------------------------------------------------------------------------------------------------------


def test_append_in_json_mode_carries_its_records() -> None:
    made = entry("POST", JSON_TYPE, b'[1, {"a":2}]')
    assert (made.kind, made.path, made.request_id) == (Kind.APPEND, "a/b", "r1")
    assert (made.lengths, made.body) == (pack_lengths([1, 7]), b'1,{"a":2}')
    assert options_of(made) == AppendOptions("application/json", producers_max=limits.PRODUCERS_MAX)
    assert made.digest == b""


def test_append_in_byte_mode_carries_its_bytes() -> None:
    made = entry("POST", {"content-type": "text/plain"}, b"[1]")
    assert (made.lengths, made.body) == (b"", b"[1]")


def test_append_of_a_producer_is_guarded_by_a_digest_of_what_is_stored() -> None:
    made = entry("POST", {**JSON_TYPE, "producer-id": "p", "producer-epoch": "3", "producer-seq": "0"}, b"[1, 2]")
    assert (made.producer_id, made.epoch, made.seq) == ("p", 3, 0)
    assert made.digest == body_digest(b"1,2")


def test_append_takes_over_sequence_closure_and_trace() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    made = entry("POST", {**JSON_TYPE, "stream-seq": "009", "stream-closed": "TRUE", "traceparent": trace}, b"1")
    assert (options_of(made).stream_seq, options_of(made).closes, made.traceparent) == ("009", True, trace)


@pytest.mark.parametrize("value", ["false", "yes", "1", ""])
def test_stream_closed_with_another_value_than_true_is_as_good_as_absent(value: str) -> None:
    assert not options_of(entry("POST", {**JSON_TYPE, "stream-closed": value}, b"1")).closes


def test_close_without_a_body_ignores_the_content_type() -> None:
    made = entry("POST", {"stream-closed": "true", "content-type": "not a type"}, b"")
    assert (made.kind, made.body, options_of(made).content_type) == (Kind.CLOSE, b"", "")


def test_create_takes_over_the_configuration() -> None:
    made = entry(
        "PUT", {"content-type": "text/plain; charset=utf-8", "stream-ttl": "60", "stream-closed": "true"}, b"x"
    )
    assert creation_of(made) == CreateOptions("text/plain; charset=utf-8", ttl_s=60, closed=True)
    assert made.body == b"x"


def test_create_without_anything_is_an_empty_byte_stream() -> None:
    assert creation_of(entry("PUT", {}, b"")) == CreateOptions("application/octet-stream")


def test_create_with_an_empty_array_is_an_empty_stream() -> None:
    assert entry("PUT", JSON_TYPE, b"[]").body == b""


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:01Z", 1_000),
        ("1970-01-01t00:00:01.5z", 1_500),
        ("1970-01-01T01:00:00.123456789+01:00", 123),
        ("1969-12-31T23:59:59Z", -1_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("9999-12-31T23:59:59-23:59", 253_402_387_139_000),
    ],
)
def test_expiry_is_understood_and_kept_as_written(text: str, ms: int) -> None:
    options = creation_of(entry("PUT", {"stream-expires-at": text}, b""))
    assert (options.expires_at, options.expires_at_ms) == (text, ms)


def test_delete_names_the_stream_only() -> None:
    made = entry("DELETE", {}, b"")
    assert (made.kind, made.path) == (Kind.DELETE, "a/b")


@pytest.mark.parametrize(
    ("method", "headers", "body", "code"),
    [
        ("POST", JSON_TYPE, b"", Code.EMPTY_BODY),
        ("POST", JSON_TYPE, b"[]", Code.EMPTY_ARRAY),
        ("POST", {**JSON_TYPE, "stream-closed": "true"}, b"[]", Code.EMPTY_ARRAY),
        ("POST", JSON_TYPE, b"{", Code.INVALID_JSON),
        ("POST", JSON_TYPE, b'"\xff"', Code.INVALID_JSON),
        ("PUT", JSON_TYPE, b"{", Code.INVALID_JSON),
        ("POST", {}, b"x", Code.INVALID_CONTENT_TYPE),
        ("POST", {"content-type": ""}, b"x", Code.INVALID_CONTENT_TYPE),
        ("POST", {"content-type": "text"}, b"x", Code.INVALID_CONTENT_TYPE),
        ("POST", {"content-type": "text/plain, text/html"}, b"x", Code.INVALID_CONTENT_TYPE),
        ("PUT", {"content-type": "text/" + "x" * 300}, b"", Code.INVALID_CONTENT_TYPE),
        ("PUT", {"stream-ttl": "60", "stream-expires-at": "2030-01-01T00:00:00Z"}, b"", Code.INVALID_HEADER),
        ("POST", {**JSON_TYPE, "stream-seq": ""}, b"1", Code.INVALID_HEADER),
        ("POST", {**JSON_TYPE, "stream-seq": "x" * 257}, b"1", Code.INVALID_HEADER),
    ],
)
def test_bad_request_never_becomes_an_entry(method: str, headers: dict[str, str], body: bytes, code: Code) -> None:
    with pytest.raises(BadRequest) as caught:
        entry(method, headers, body)
    assert caught.value.code is code


@pytest.mark.parametrize("ttl", ["", "-1", "+60", "060", "00", "60.0", "6e1", "abc", "\xb2", "9" * 16, "9" * 400])
def test_ttl_is_strict_decimal(ttl: str) -> None:
    with pytest.raises(BadRequest) as caught:
        entry("PUT", {"stream-ttl": ttl}, b"")
    assert caught.value.code is Code.INVALID_HEADER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not-a-timestamp",
        "2030-01-01",
        "2030-01-01T00:00:00",
        "2030-13-01T00:00:00Z",
        "2030-01-01T24:00:00Z",
        "0000-01-01T00:00:00Z",
        "20300101T000000Z",
        "2030-01-01T00:00:00." + "0" * 300 + "Z",
        "٢030-01-01T00:00:00Z".encode().decode("latin-1"),
    ],
)
def test_expiry_is_strict_rfc_3339(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        entry("PUT", {"stream-expires-at": text}, b"")
    assert caught.value.code is Code.INVALID_HEADER


@pytest.mark.parametrize(
    "change",
    [
        {"producer-id": None},
        {"producer-epoch": None},
        {"producer-seq": None},
        {"producer-id": None, "producer-seq": None},
        {"producer-id": ""},
        {"producer-id": "x" * 257},
        {"producer-id": "a\x7fb"},
        {"producer-epoch": "-1"},
        {"producer-epoch": "0xyz"},
        {"producer-epoch": "1e3"},
        {"producer-seq": "1abc"},
        {"producer-seq": ""},
        {"producer-seq": "01"},
        {"producer-seq": "1, 1"},
        {"producer-seq": "\xb2"},
        {"producer-seq": str(SEQ_MAX + 1)},
        {"producer-seq": "9" * 5000},
    ],
)
def test_producer_headers_are_all_there_and_strict(change: dict[str, str | None]) -> None:
    headers = {name: value for name, value in {**JSON_TYPE, **PRODUCER, **change}.items() if value is not None}
    with pytest.raises(BadRequest) as caught:
        entry("POST", headers, b"1")
    assert caught.value.code is Code.INVALID_PRODUCER


def test_largest_seq_is_accepted() -> None:
    assert entry("POST", {**JSON_TYPE, **PRODUCER, "producer-seq": str(SEQ_MAX)}, b"1").seq == SEQ_MAX


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_session_is_not_written_as_a_stream(method: str) -> None:
    with pytest.raises(BadRequest) as caught:
        require_method(method, "sessions/s1")
    assert caught.value.code is Code.METHOD_NOT_ALLOWED
    assert caught.value.headers == ((b"allow", b"GET, HEAD, OPTIONS"),)


# -- answers ---------------------------------------------------------------------------------------------------------


def answered(headers: dict[str, str], outcome: Outcome, *, method: str = "POST", body: bytes = b"1") -> Response:
    asked = request(method, {**JSON_TYPE, **headers})
    return answer(asked, entry_of(asked, body), outcome, "fsync")


def test_append_without_a_producer_is_answered_with_204_and_where_it_landed() -> None:
    response = answered({}, Outcome(Result.ACCEPTED, stream=STREAM, next_position=9))
    assert response.status == 204
    assert told(response) == {"stream-durability": "fsync", "stream-next-offset": format_offset(9, 7)}


def test_new_batch_of_a_producer_is_answered_with_200() -> None:
    response = answered(PRODUCER, Outcome(Result.ACCEPTED, stream=STREAM, next_position=9, epoch=0, seq=0))
    assert (response.status, told(response)["content-length"]) == (200, "0")
    assert (told(response)["producer-epoch"], told(response)["producer-seq"]) == ("0", "0")


def test_duplicate_is_answered_with_204_the_original_offset_and_the_highest_seq() -> None:
    response = answered(PRODUCER, Outcome(Result.DUPLICATE, stream=STREAM, next_position=4, epoch=0, seq=6))
    assert response.status == 204
    assert (told(response)["stream-next-offset"], told(response)["producer-seq"]) == (format_offset(4, 7), "6")


def test_duplicate_too_old_to_be_placed_gets_no_offset() -> None:
    response = answered(PRODUCER, Outcome(Result.DUPLICATE, stream=STREAM, epoch=0, seq=90))
    assert response.status == 204
    assert "stream-next-offset" not in told(response)


def test_created_stream_is_told_with_its_url_and_confirmed_one_with_200() -> None:
    outcome = Outcome(Result.CREATED, stream=STREAM, next_position=9)
    response = answered({}, outcome, method="PUT")
    assert (response.status, told(response)["location"]) == (201, "http://h:1/v1/stream/a/b")
    assert told(response)["content-type"] == "application/json"
    confirmed = answered({}, Outcome(Result.UNCHANGED, stream=STREAM, next_position=9), method="PUT")
    assert (confirmed.status, "location" in told(confirmed)) == (200, False)


def test_gap_names_the_expected_and_the_received_seq() -> None:
    outcome = refused(Code.SEQ_GAP, stream=STREAM, epoch=0, expected_seq=3)
    response = answered({**PRODUCER, "producer-seq": "8"}, outcome)
    assert response.status == 409
    assert (told(response)["producer-expected-seq"], told(response)["producer-received-seq"]) == ("3", "8")
    assert msgspec.json.decode(response.body)["expectedSeq"] == 3


def test_stale_epoch_names_the_current_one() -> None:
    response = answered(PRODUCER, refused(Code.FENCED, stream=STREAM, epoch=4))
    assert (response.status, told(response)["producer-epoch"]) == (403, "4")


@pytest.mark.parametrize("code", [Code.STREAM_CLOSED, Code.CONTENT_TYPE_MISMATCH, Code.PAYLOAD_MISMATCH])
def test_conflict_that_is_no_gap_never_looks_like_one(code: Code) -> None:
    response = answered({**PRODUCER, "producer-seq": "8"}, refused(code, stream=STREAM))
    assert response.status == 409
    assert told(response)["producer-expected-seq"] == told(response)["producer-received-seq"] == "8"


def test_closed_stream_is_told_with_its_end() -> None:
    closed = msgspec.structs.replace(STREAM, closed=True)
    response = answered({}, refused(Code.STREAM_CLOSED, stream=closed, next_position=9))
    assert (response.status, told(response)["stream-closed"]) == (409, "true")
    assert told(response)["stream-next-offset"] == format_offset(9, 7)


def test_every_code_has_a_standing_in_http() -> None:
    assert set(standing_of) == set(Code)
    assert all(400 <= standing.status <= 599 for standing in standing_of.values())
