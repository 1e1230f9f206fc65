"""broker/journal/cluster_record.py: bytes that every node of every version has to read alike."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from broker.errors import NewerFormat
from broker.journal.cluster_record import Audit, Envelope, Mark, Meta, decode, decode_mark, encode, encode_mark

numbers = st.integers(0, 2**63 - 1)
metas = st.builds(Meta, st.binary(min_size=16, max_size=16), st.integers(0, 255), st.integers(1, 256))
envelopes = st.builds(
    Envelope,
    numbers,
    numbers,
    st.lists(st.binary(max_size=20), max_size=4).map(tuple),
    numbers,
    st.none() | metas,
    st.none() | st.builds(Audit, st.binary(min_size=16, max_size=16), numbers, st.binary(max_size=16)),
)


@given(envelopes)
def test_record_comes_back_as_it_was(envelope: Envelope) -> None:
    assert decode(encode(envelope)) == envelope


@given(st.builds(Mark, metas, numbers, st.binary(max_size=16), st.binary(max_size=50), numbers))
def test_mark_comes_back_as_it_was(mark: Mark) -> None:
    assert decode_mark(encode_mark(mark)) == mark


def test_bytes_of_a_record_never_change() -> None:
    meta, audit = Meta(b"m" * 4, 1, 8), Audit(b"m" * 4, 9, b"c" * 4)
    whole = Envelope(1, 2, (b"one", b"two"), 3, meta, audit, b"log!")
    assert encode(whole).hex() == (
        "53460197010292c4036f6e65c40374776f0393c4046d6d6d6d0108"
        "93c4046d6d6d6d09c40463636363c4046c6f6721"
    )  # fmt: skip


def test_record_without_what_was_added_later_still_decodes() -> None:
    assert decode(b"SF\x01" + msgspec.msgpack.encode([1, 2])) == Envelope(1, 2)


@pytest.mark.parametrize("data", [b"", b"S", b"{}", b"\x00" * 20])
def test_somebody_elses_record_means_nothing(data: bytes) -> None:
    assert decode(data) is None


@pytest.mark.parametrize("data", [b"SF", b"SF\x00", b"SF\x02\x92\x01\x02"])
def test_record_of_another_version_is_not_guessed_at(data: bytes) -> None:
    with pytest.raises(NewerFormat, match="format version"):
        decode(data)
