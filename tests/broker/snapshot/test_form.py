"""broker/snapshot/form.py: what was written comes back, and nothing else does."""

import hashlib
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, strategies as st

from broker.snapshot.form import FORMAT_VERSION, Facts, Name, Unusable, decode, encode, name_of
from broker.store.form import FORM

FACTS = Facts(b"u" * 16, 3, 8, 70, 60, b"c" * 16, 500, 1_000, 12_345, 0)


def facts_of(store: bytes, **others: int) -> Facts:
    return msgspec.structs.replace(FACTS, size_bytes=len(store), **others)


def written(store: bytes) -> bytes:
    return b"".join(encode(facts_of(store), [store] if store else []))


def cut(data: bytes, size_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(data), size_bytes):
        yield data[start : start + size_bytes]


@given(st.binary(max_size=300), st.integers(1, 400))
def test_snapshot_comes_back_as_it_was_written_however_it_is_cut(store: bytes, size_bytes: int) -> None:
    facts, *pieces = decode(cut(written(store), size_bytes))
    assert facts == facts_of(store)
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == store


@given(st.binary(min_size=1, max_size=200), st.data())
def test_snapshot_with_a_bit_that_flipped_is_never_taken(store: bytes, data: st.DataObject) -> None:
    whole = written(store)
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    with pytest.raises(Unusable):
        list(decode([whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]]))


@given(st.binary(max_size=200), st.data())
def test_snapshot_that_is_cut_short_or_goes_on_is_never_taken(store: bytes, data: st.DataObject) -> None:
    whole = written(store)
    for wrong in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"x"):
        with pytest.raises(Unusable):
            list(decode(cut(wrong, 64)))


def test_snapshot_of_a_newer_format_is_told_from_a_damaged_one() -> None:
    whole = written(b"store")
    with pytest.raises(Unusable, match=f"it has format {FORMAT_VERSION + 1}; this version knows"):
        list(decode([whole[:4] + bytes([FORMAT_VERSION + 1]) + whole[5:]]))
    newer = facts_of(b"", store_version=FORM.version + 1)
    with pytest.raises(Unusable, match="its store has format"):
        list(decode(encode(newer, [])))


def test_facts_of_a_later_version_that_has_more_of_them_are_read() -> None:
    """Fields are appended, and an older program goes without."""
    whole = written(b"")
    head, packed, _ = whole[:9], whole[9:-32], whole[-32:]
    more = msgspec.msgpack.encode([*msgspec.msgpack.decode(packed), "new"])
    body = head[:5] + len(more).to_bytes(4, "little") + more
    assert list(decode([body + hashlib.sha256(body).digest()])) == [FACTS]


def test_store_of_another_size_than_was_told_is_not_written() -> None:
    with pytest.raises(ValueError, match="4 bytes, not 5"):
        list(encode(facts_of(b"12345"), [b"1234"]))


@given(st.integers(0, 10**20 - 1), st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
def test_name_is_read_as_it_was_written(position: int, log_uuid: bytes, boot: int) -> None:
    name = Name(position, log_uuid, boot)
    assert name_of(str(name)) == name


def test_name_of_something_else_is_none() -> None:
    assert [name_of(text) for text in ("", "README", "1-2-3.snapshot", f"{Name(1, b'u' * 16, 1)}.part")] == [None] * 4
