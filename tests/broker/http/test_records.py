"""The division of a JSON body into records (PROTOCOL.md 9.1)."""

import json

import pytest
from hypothesis import given, strategies as st

from broker import limits
from broker.core.page import Page, records
from broker.http.problems import BadRequest
from broker.http.records import split
from consumer.wire import Code

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=4),
    max_leaves=20,
)
LONE_SURROGATES = st.text(st.characters(categories=["Cs", "Lu", "Pe", "Po"]), max_size=8)


def divided(body: bytes) -> list[bytes]:
    lengths, data = split(body)
    return records(Page(0, len(lengths) // 4, lengths, data))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"event":"created"}', [b'{"event":"created"}']),
        (b"42", [b"42"]),
        (b"null", [b"null"]),
        (b'[{"event":"a"},{"event":"b"}]', [b'{"event":"a"}', b'{"event":"b"}']),
        (b"[[1,2],[3,4]]", [b"[1,2]", b"[3,4]"]),
        (b"[[[1,2,3]]]", [b"[[1,2,3]]"]),
        (b"[]", []),
        (b" [ ] ", []),
        (b' [ 1 ,\n{"a" : 2 } ] ', [b"1", b'{"a" : 2 }']),
        (b'["[", "]", ","]', [b'"["', b'"]"', b'","']),
        (b"[1.0, 1e400, 123456789012345678901234567890]", [b"1.0", b"1e400", b"123456789012345678901234567890"]),
        ('["é", "😀"]'.encode(), ['"é"'.encode(), '"😀"'.encode()]),
    ],
)
def test_body_is_divided_and_each_record_kept_as_it_was_written(body: bytes, expected: list[bytes]) -> None:
    assert divided(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{ invalid json }",
        b"[1,]",
        b"[1",
        b"[1]]",
        b"1 2",
        b"NaN",
        b"01",
        b"'a'",
        b'"\x01"',
        b'"\\x"',
        b'"\xff"',
        b'"\xed\xa0\x80"',  # half a surrogate pair, encoded as if it were a character
        b"\xef\xbb\xbf1",
        b'["\\ud83d]',
        b'"\\ud83"',
        b"\\ud83d",
    ],
)
def test_what_is_not_json_in_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        split(body)
    assert caught.value.code is Code.INVALID_JSON


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (rb'"\ud83d"', [rb'"\ud83d"']),
        (rb'[{"t":"\uDE00"} , "\\ud83d", 1]', [rb'{"t":"\uDE00"}', rb'"\\ud83d"', b"1"]),
        (rb'["\ud83d", "\ud83d", "\ud83d\ude00"]', [rb'"\ud83d"', rb'"\ud83d"', rb'"\ud83d\ude00"']),
        (rb'[" ", "\ud83d"]', [b'" "', rb'"\ud83d"']),
        (rb'{"\ud83d":1}', [rb'{"\ud83d":1}']),
    ],
)
def test_half_of_a_surrogate_pair_is_valid_json_and_kept(body: bytes, expected: list[bytes]) -> None:
    assert divided(body) == expected


@given(values=st.lists(JSON_VALUES, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_any_array_is_divided_into_its_elements(values: list[object], indent: int | None, *, ascii_only: bool) -> None:
    body = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    assert [json.loads(record) for record in divided(body.encode())] == values


@given(st.lists(LONE_SURROGATES, max_size=6))
def test_any_surrogates_survive(values: list[str]) -> None:
    body = json.dumps(values)  # which makes one character of two halves that fit
    assert [json.loads(record) for record in divided(body.encode())] == json.loads(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_is_bounded(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(depth: int) -> bytes:
        return b"[" + opening * depth + b"0" + closing * depth + b"]"

    assert len(divided(nested(limits.JSON_DEPTH_MAX))) == 1
    for depth in (limits.JSON_DEPTH_MAX + 1, 100_000):
        with pytest.raises(BadRequest) as caught:
            split(nested(depth))
        assert caught.value.code is Code.INVALID_JSON


def test_brackets_in_strings_are_no_nesting() -> None:
    assert len(divided(json.dumps(["[{" * 1000 + '"[{']).encode())) == 1
    assert len(divided(json.dumps([[[]] * 1000]).encode())) == 1


def test_more_records_than_a_batch_may_hold_are_refused() -> None:
    """A body of bare digits stays below the bound on bytes and would hold the event loop for a second."""
    most = b"[" + b",".join([b"1"] * limits.BATCH_RECORDS_MAX) + b"]"
    assert len(split(most)[0]) == 4 * limits.BATCH_RECORDS_MAX
    with pytest.raises(BadRequest) as refused:
        split(most[:-1] + b",1]")
    assert refused.value.code is Code.BODY_TOO_LARGE
