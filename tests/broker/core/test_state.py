"""broker/core/state.py: rows and keys as the store keeps them."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from broker.core.producer import Receipt, Sequence
from broker.core.state import (
    Changes,
    Child,
    Generation,
    Lane,
    Link,
    Message,
    Producer,
    Row,
    Segment,
    Session,
    Stream,
    Subscription,
    Wake,
    decode_row,
    encode_row,
    generation_key,
    media_type,
    message_key,
    owned_prefixes,
    owner,
    producer_key,
    session_key,
    stream_key,
    subscription_key,
)

uint64 = st.integers(0, 2**63 - 1)
short_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
sequences = st.builds(
    Sequence,
    st.integers(-1, 2**53 - 1),
    st.lists(st.builds(Receipt, st.binary(max_size=8), uint64), max_size=4).map(tuple),
)
generations = st.builds(
    Generation,
    *[uint64, uint64, short_text, short_text, short_text, uint64, short_text, short_text, short_text],
    *[uint64, uint64, uint64],
    sequence=sequences,
    chunks=uint64,
    ended_ms=uint64,
    reason=short_text,
    error=st.binary(max_size=5),
)
rows: st.SearchStrategy[Row] = st.one_of(
    st.builds(
        Stream,
        uint64,
        short_text,
        uint64,
        uint64,
        tail=uint64,
        closed=st.booleans(),
        closed_by=st.none() | st.tuples(short_text, uint64, uint64),
        stream_seq=st.none() | short_text,
        ttl_s=st.none() | uint64,
        expires_at=st.none() | short_text,
        expires_at_ms=st.none() | uint64,
        producers=uint64,
        source=st.none() | st.tuples(short_text, uint64),
        lineage=st.lists(st.builds(Segment, short_text, uint64, uint64), max_size=2).map(tuple),
        children=st.lists(st.builds(Child, short_text, uint64, uint64), max_size=2).map(tuple),
        deleted=st.booleans(),
    ),
    st.builds(Producer, uint64, uint64, sequences, uint64),
    st.builds(
        Session,
        uint64,
        uint64,
        uint64,
        metadata=st.binary(max_size=5),
        lanes=st.lists(st.builds(Lane, short_text, uint64), max_size=3).map(tuple),
        open=st.lists(generations, max_size=2).map(tuple),
    ),
    st.builds(Message, uint64, uint64, uint64, digest=st.binary(max_size=8), generation_id=short_text),
    generations,
    st.builds(
        Subscription,
        *[uint64, short_text, st.binary(max_size=8), uint64, short_text, uint64],
        description=st.none() | short_text,
        linked=st.booleans(),
        generation=uint64,
        wake=st.none()
        | st.builds(
            Wake,
            *[short_text, short_text, uint64, uint64],
            attempt=uint64,
            next_attempt_ms=st.none() | uint64,
            holder=short_text,
        ),
        links=st.lists(
            st.builds(Link, short_text, uint64, uint64, explicit=st.booleans(), wake_tail=uint64), max_size=3
        ).map(tuple),
    ),
)


@given(rows)
def test_row_read_back_is_the_row_that_was_stored(row: Row) -> None:
    assert decode_row(encode_row(row)) == row


GOLDEN_ROWS: list[tuple[Row, str]] = [
    (
        Stream(1, "a/b", 2, 3, 4, closed=True, closed_by=("p", 5, 6), stream_seq="s", ttl_s=7, producers=8),
        "dc00120101a3612f62020304c393a1700506a17307c0c008c09090c290",
    ),
    (
        Stream(
            1, "t", 2, 3, source=("s", 4), lineage=(Segment("s", 4, 5),), children=(Child("c", 6, 7),), deleted=True
        ),
        "dc00120101a174020300c2c0c0c0c0c00092a173049193a17304059193a1630607c390",
    ),
    (Producer(1, 2, Sequence(0, (Receipt(b"d", 9),)), 3), "95020102920091 92c4016409 03".replace(" ", "")),
    (Session(1, 2, 3, b"{}", (Lane("main", 4),)), "9c03010203c4027b7d9192a46d61696e0490c4000000a0c0"),
    (Message(1, 2, 3, b"d", "g"), "9604010203c40164a167"),
    (
        Generation(1, 2, "g", "m", "l", 3, "f", "r", "a", 4, 5, 6),
        "dc0017050102a167a16da16c03a166a172a161040506a973747265616d696e6792ff900000a0c400c400c400a0a0",
    ),
    (
        Subscription(
            *(1, "i", b"d", 2, "t", 3, "p", "u", "w", "d", "b"),
            linked=True,
            generation=4,
            wake=Wake("w", "p", 5, 6, 7, 8, "h"),
            links=(Link("l", 9, 10, explicit=True, wake_tail=11),),
        ),
        "dc00100601a169c4016402a17403a170a175a177a164a162c30497a177a17005060708a1689195a16c090ac30b",
    ),
]


@pytest.mark.parametrize(
    ("row", "data"), GOLDEN_ROWS, ids=["stream", "fork", "producer", "session", "message", "generation", "subscription"]
)
def test_stored_form_of_each_row_is_fixed_for_ever(row: Row, data: str) -> None:
    """A store on somebody's disk has these. A new field comes last, with a default."""
    assert encode_row(row).hex() == data
    assert decode_row(bytes.fromhex(data)) == row


ROWS_BEFORE = [
    "dc00110101a3612f62020304c393a1700506a17307c0c008c09090c2",
    "dc00110101a174020300c2c0c0c0c0c00092a173049193a17304059193a1630607c3",
    "9703010203c4027b7d9192a46d61696e0490",
    "dc0015050102a167a16da16c03a166a172a161040506a973747265616d696e6792ff900000a0c400c400c400",
]
"""As programs wrote them that did not know the fields which have been appended since."""


@pytest.mark.parametrize("data", ROWS_BEFORE)
def test_row_without_the_newest_fields_is_the_row_with_their_defaults(data: str) -> None:
    assert decode_row(bytes.fromhex(data)) in [row for row, _ in GOLDEN_ROWS]


def test_row_of_an_older_program_lacks_newer_fields_and_still_reads() -> None:
    assert decode_row(msgspec.msgpack.encode([1, 5, "t", 6, 7])) == Stream(5, "t", 6, 7)


@pytest.mark.parametrize("data", [b"", b"\x00", msgspec.msgpack.encode([99, 1, 2, 3])], ids=repr)
def test_bytes_that_are_no_row_are_an_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_row(data)


def test_rows_belong_to_a_life_of_the_stream_or_of_the_session() -> None:
    """What outlives a reset belongs to the session's birth (CORE 7)."""
    assert [owner(row) for row, _ in GOLDEN_ROWS] == [1, 1, 1, 1, 1, 1, 1]
    assert owner(Message(7, 8, 0)) == 7
    assert owner(Producer(8, 0, Sequence(), 0)) == 8


paths = st.text("ab/é~", min_size=1, max_size=4)
ids = st.text("ab:~", min_size=1, max_size=3)


@given(paths, ids, paths, ids)
def test_keys_are_equal_only_for_the_same_thing(path: str, name: str, other_path: str, other_name: str) -> None:
    def every_key(path: str, name: str) -> list[bytes]:
        return [
            stream_key(path),
            session_key(path),
            producer_key(path, name),
            generation_key(path, name),
            message_key(path, name),
            subscription_key(path),
        ]

    one, other = every_key(path, name), every_key(other_path, other_name)
    assert len(set(one)) == 6
    for position, key in enumerate(one):
        same_path = path == other_path
        assert (key in other) == (same_path and (position in (0, 1, 5) or name == other_name))


@given(paths, ids, paths)
def test_owned_prefixes_cover_the_rows_of_a_path_and_of_no_other(path: str, name: str, other_path: str) -> None:
    prefixes = owned_prefixes(path)
    for of in (producer_key, generation_key, message_key):
        assert any(of(path, name).startswith(prefix) for prefix in prefixes)
        assert any(of(other_path, name).startswith(prefix) for prefix in prefixes) == (path == other_path)
    for key in (stream_key(path), session_key(path)):
        assert not any(key.startswith(prefix) for prefix in prefixes)


@pytest.mark.parametrize(
    ("content_type", "media"),
    [
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        (" text/plain ;x=y", "text/plain"),
        ("", ""),
    ],
)
def test_media_type_is_the_type_without_parameters_in_lower_case(content_type: str, media: str) -> None:
    assert media_type(content_type) == media


def test_changes_show_what_was_put_before_what_was_loaded() -> None:
    row, newer = Stream(1, "t", 0, 0), Stream(2, "t", 0, 0)
    changes = Changes({b"loaded": row, b"absent": None})
    assert changes.get(b"loaded") is row
    changes.put(b"loaded", newer)
    changes.put(b"absent", row)
    assert changes.get(b"loaded") is newer
    assert changes.get(b"absent") is row
    changes.put(b"loaded", None)
    assert changes.get(b"loaded") is None


def test_row_that_was_not_loaded_is_a_bug_and_not_an_absent_row() -> None:
    with pytest.raises(KeyError):
        Changes({}).get(b"forgotten by keys")
