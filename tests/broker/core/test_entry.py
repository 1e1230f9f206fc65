"""broker/core/entry.py: the binary form of entries, on disk for as long as a journal holds it."""

from typing import get_type_hints

import msgspec
import pytest
from hypothesis import given, strategies as st

from broker.core.entry import (
    APPLY_LEVEL,
    FORMAT_VERSION,
    Entry,
    InheritedGeneration,
    InheritedMessage,
    Kind,
    UnknownFormat,
    body_digest,
    decode,
    encode,
    encode_options,
    type_of_options,
)
from tests.broker.core import entries

uint64 = st.integers(0, 2**63 - 1)
short_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_bytes = st.sampled_from([b"", b"{}", b'{"a":[1]}'])


inherited_messages = st.builds(InheritedMessage, short_text, uint64, json_bytes, short_text)
inherited_generations = st.builds(
    InheritedGeneration, *[short_text] * 3, uint64, *[short_text] * 3, uint64, uint64, uint64, short_text
)
any_value: dict[object, st.SearchStrategy[object]] = {
    bytes: json_bytes,
    str: short_text,
    int: uint64,
    bool: st.booleans(),
    tuple[InheritedMessage, ...]: st.lists(inherited_messages, max_size=2).map(tuple),
    tuple[InheritedGeneration, ...]: st.lists(inherited_generations, max_size=2).map(tuple),
    str | None: st.none() | short_text,
    int | None: st.none() | uint64,
    tuple[str, ...]: st.lists(short_text, max_size=3).map(tuple),
    tuple[tuple[str, int, int], ...]: st.lists(st.tuples(short_text, uint64, uint64), max_size=3).map(tuple),
    tuple[str, int | None, int | None]: st.tuples(short_text, st.none() | uint64, st.none() | uint64),
}


def options_of(kind: Kind) -> st.SearchStrategy[bytes]:
    """The bytes of every option struct that an entry of the kind may carry."""
    options = type_of_options.get(kind)
    if options is None:
        return st.just(b"")
    fields = {field: any_value[kind_of] for field, kind_of in get_type_hints(options).items()}
    return st.fixed_dictionaries(fields).map(lambda values: encode_options(options(**values)))


@st.composite
def any_entry(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(Kind))
    texts = [draw(short_text) for _ in range(6)]
    numbers = [draw(uint64) for _ in range(6)]
    blobs = [draw(st.binary(max_size=20)) for _ in range(3)]
    return Entry(
        kind,
        texts[0],
        incarnation=numbers[0],
        boot=numbers[1],
        proposal=numbers[2],
        nonce=numbers[3],
        producer_id=texts[1],
        epoch=numbers[4],
        seq=numbers[5],
        digest=blobs[0],
        txid=texts[2],
        actor=texts[3],
        request_id=texts[4],
        traceparent=texts[5],
        options=draw(options_of(kind)),
        lengths=blobs[1],
        body=blobs[2],
    )


@given(any_entry())
def test_entry_read_back_is_the_entry_that_was_written(entry: Entry) -> None:
    assert decode(encode(entry)) == entry


@given(any_entry())
def test_options_read_back_are_the_options_that_were_written(entry: Entry) -> None:
    options_type = type_of_options.get(Kind(entry.kind))
    if options_type is not None:
        options = msgspec.msgpack.decode(entry.options, type=options_type)
        assert encode_options(options) == entry.options


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 255])
def test_bytes_of_an_unknown_version_are_refused_and_not_guessed_at(version: int) -> None:
    data = bytes([version]) + encode(entries.noop())[1:]
    with pytest.raises(UnknownFormat, match=f"version {version}; this program knows {FORMAT_VERSION}"):
        decode(data)


def test_no_bytes_at_all_are_refused() -> None:
    with pytest.raises(UnknownFormat, match="version none"):
        decode(b"")


def test_entry_of_a_higher_apply_level_is_refused() -> None:
    """CORE 1: an older program must not apply what a newer one meant otherwise."""
    entry = msgspec.structs.replace(entries.append(b"1"), apply_level=APPLY_LEVEL + 1)
    with pytest.raises(UnknownFormat, match=f"apply level {APPLY_LEVEL + 1}"):
        decode(encode(entry))


@pytest.mark.parametrize(
    "data", [b"\x01", b"\x01\xc0", b"\x01\x92\xa1x\x02", encode(entries.append(b"1"))[:-1]], ids=repr
)
def test_bytes_that_no_version_makes_are_an_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(data)


def test_entry_of_an_older_program_lacks_newer_fields_and_still_reads() -> None:
    """Fields are only appended, with defaults: an entry of the first two fields is whole."""
    assert decode(bytes([FORMAT_VERSION]) + msgspec.msgpack.encode([0, "p"])) == Entry(Kind.NOOP, "p")


def test_fields_that_a_newer_program_appended_are_passed_over() -> None:
    fields = [*msgspec.structs.astuple(entries.delete()), "from the future"]
    assert decode(bytes([FORMAT_VERSION]) + msgspec.msgpack.encode(fields)) == entries.delete()


def test_digest_is_eight_bytes_of_blake2b() -> None:
    assert body_digest(b"hello").hex() == "a7b6eda801e5347d"


GOLDEN = {
    "NOOP": ("01dc001200a00100070900a00000c400a0a0a0a0c400c400c400"),
    "CREATE": (
        "01dc001201a3612f620100070905a00000c400a0a0a0a0c41695b06170706c69636174696f6e2f6a736f6e3cc0c0c2c4"
        "080100000005000000c407312c2274776f22"
    ),
    "APPEND": (
        "01dc001202a3612f620105070900a1700102c4089e251905a6d98e01a0a0a0a0c41894b06170706c69636174696f6e2f"
        "6a736f6ea173c3cd2710c40401000000c40133"
    ),
    "CLOSE": ("01dc001203a3612f620100070900a1700103c408e4a6a0577479b2b4a0a0a0a0c40794a0c0c3cd2710c400c400"),
    "DELETE": ("01dc001204a3612f620105070900a00000c400a0a0a0a0c400c400c400"),
    "EXPIRE": ("01dc001205a3612f620100070900a00000c400a0a0a0a0c400c400c400"),
    "TOUCH": ("01dc001206a3612f620105070900a00000c400a0a0a0a0c400c400c400"),
    "PRODUCER_FORGET": ("01dc001207a3612f620100070900a00000c400a0a0a0a0c40c92a170cf0000018bcfe56800c400c400"),
    "FORK_REF": ("01dc001208a3612f620100070906a00000c400a0a0a0a0c41096a56368696c6409a16f01a174cd03e8c400c400"),
    "FORK": (
        "01dc001209a56368696c640100070906a00000c400a0a0a0a0c42a9ca3612f62059193a3612f62050209a000b0617070"
        "6c69636174696f6e2f6a736f6e3cc0c0c293a0c0c0c40401000000c40131"
    ),
    "FORK_UNREF": ("01dc00120aa3612f620100070900a00000c400a0a0a0a0c40892a56368696c6406c400c400"),
    "SESSION_CREATE": (
        "01dc001210ab73657373696f6e732f73310100070900a00000c4089260a5e8ae05afb0a0a0a0a0c41793c4077b226122"
        "3a317da26d31c4081f8c00645b7df6cec400c40b7b226964223a226d31227d"
    ),
    "SESSION_DELETE": ("01dc001211ab73657373696f6e732f73310100070900a00000c400a0a0a0a0c400c400c400"),
    "MESSAGE": (
        "01dc001212ab73657373696f6e732f73310100070900a00000c40816b3edcde38660d3a174a0a0a0c40491a26d32c400"
        "c40b7b226964223a226d32227d"
    ),
    "CHUNKS": (
        "01dc001213ab73657373696f6e732f73310100070900a00000c408a76dd08dba248c12a0a0a0a0c431dc0011a26731a2"
        "6d33a473696465a474657874a9617373697374616e74a161cd753040cd0100a0a0c400c400c400a0c2c2c4080f000000"
        "01000000c4117b2274797065223a2274657874227d2c31"
    ),
    "FINISH": (
        "01dc001214ab73657373696f6e732f73310100070900a00001c408071cd6fb6e8d92bfa0a0a0a0c448dc0011a26731a2"
        "6731a46d61696ea474657874a9617373697374616e74a0cd753040cd0100a66661696c6564a172c403226522c4077b22"
        "75223a317dc4077b226d223a327da0c2c2c400c400"
    ),
    "STOP": ("01dc001215ab73657373696f6e732f73310100070900a00000c400a0a0a0a0c40e93a26731a26d65a6656e6f756768c400c400"),
    "HEARTBEAT": ("01dc001216ab73657373696f6e732f73310100070900a00000c400a0a0a0a0c40693a26731a0a0c400c400"),
    "LEASE_EXPIRE": ("01dc001217ab73657373696f6e732f73310100070900a00000c400a0a0a0a0c40693a26731024dc400c400"),
    "GENERATION_OPEN": (
        "01dc001218ab73657373696f6e732f73310100070900a00000c400a174a0a0a0c42cdc0011a26731a16da16ca0a96173"
        "73697374616e74a0cd753040cd0100a0a0c400c400c4027b7da26730c3c3c400c400"
    ),
    "SESSION_RESET": ("01dc001219ab73657373696f6e732f73310100070906a00000c400a0a0a0a0c40391a172c400c400"),
    "SESSION_FORK": (
        "01dc00121aaa73657373696f6e732f630100070906a00000c400a0a0a0a0c47699ab73657373696f6e732f7331059193"
        "ab73657373696f6e732f7331050209a1739294a26d3101c406646967657374a094a26d3200c400a2673191dc0011a267"
        "31a26d32a16c01a474657874a475736572a66661696c6564030405a161a172c40131c400c400a0a0c4027b7dc40801e7"
        "b720ff566d53c400c400"
    ),
    "SESSION_STOP": (
        "01dc00121bab73657373696f6e732f73310100070900a00000c400a0a0a0a0c40d93a16ca26d65a6656e6f756768c400c400"
    ),
    "RECORD": (
        "01dc00121cab73657373696f6e732f73310100070900a00000c400a0a0a0a0c40c92a8617070726f76616ca16bc400c4"
        "077b2261223a317d"
    ),
    "SESSION_EXPIRE": ("01dc00121dab73657373696f6e732f73310105070900a00000c400a0a0a0a0c4059202cd2328c400c400"),
    "SUBSCRIPTION_CREATE": (
        "01dc001220a57375622d310100070906a00000c4086758500719c9a60ba0a0a0a0c44298a970756c6c2d77616b65cd75"
        "30a3612f2a9193a3612f620502a0a177a164d92168747470733a2f2f62726f6b65722e6578616d706c652f76312f7374"
        "7265616d2fc400c400"
    ),
    "SUBSCRIPTION_LINK": (
        "01dc001221a57375622d310100070900a00000c400a0a0a0a0c40f959193a3612f620502c391a16309c3c400c400"
    ),
    "SUBSCRIPTION_ATTEMPT": (
        "01dc001222a57375622d310106070907a00000c400a0a0a0a0c40e940100cd03849193a3612f620503c400c400"
    ),
    "SUBSCRIPTION_CLAIM": ("01dc001223a57375622d310100070908a00000c400a0a0a0a0c40c92a26d659193a3612f620503c400c400"),
    "SUBSCRIPTION_ACK": (
        "01dc001224a57375622d310106070900a00000c400a0a0a0a0c4129701a3775f379193a3612f620503c3c3c34dc400c400"
    ),
    "IMPORT": (
        "01dc001270aa73657373696f6e732f630100070906a00000c400a0a0a0a0c4599aa3612f62059193a3612f62050209a0"
        "9194a26d3101c406646967657374a091dc0011a26731a26d31a16c01a474657874a475736572a66661696c6564030405"
        "a0a0c400c400c400a0a0c4027b7dc40801e7b720ff566d5308c400c400"
    ),
    "SUBSCRIPTION_DELETE": ("01dc001225a57375622d310106070900a00000c400a0a0a0a0c400c400c400"),
}

BEFORE = {
    "SESSION_CREATE": (
        "01dc001210ab73657373696f6e732f73310100070900a00000c4089260a5e8ae05afb0a0a0a0a0c40d92c4077b226122"
        "3a317da26d31c400c40b7b226964223a226d31227d"
    ),
    "CHUNKS": (
        "01dc001213ab73657373696f6e732f73310100070900a00000c408a76dd08dba248c12a0a0a0a0c42c9ea26731a26d33"
        "a473696465a474657874a9617373697374616e74a161cd753040cd0100a0a0c400c400c400c4080f00000001000000c4"
        "117b2274797065223a2274657874227d2c31"
    ),
    "FINISH": (
        "01dc001214ab73657373696f6e732f73310100070900a00001c408071cd6fb6e8d92bfa0a0a0a0c4439ea26731a26731"
        "a46d61696ea474657874a9617373697374616e74a0cd753040cd0100a66661696c6564a172c403226522c4077b227522"
        "3a317dc4077b226d223a327dc400c400"
    ),
}
"""As programs wrote them that did not know the fields which have been appended since."""


def one_of_each() -> list[Entry]:
    """One entry of every kind that can be applied, with most fields set somewhere."""
    stamped = {"boot": 7, "proposal": 9}
    made = [
        entries.noop(),
        entries.create(b"1", b'"two"', ttl_s=60, nonce=5),
        entries.append(b"3", producer=("p", 1, 2), stream_seq="s", closes=True, incarnation=5),
        entries.close(producer=("p", 1, 3)),
        entries.delete(incarnation=5),
        entries.expire(),
        entries.touch(incarnation=5),
        entries.forget("p", 1_700_000_000_000),
        entries.fork_ref("child", 6, deadline_ms=9, offset="o", sub_offset=1, content_type="t"),
        entries.fork(b"1", path="child", child=6, lineage=(("a/b", 5, 2),), deadline_ms=9, ttl_s=60),
        entries.fork_unref("child", 6),
        entries.create_session("m1", b'{"id":"m1"}', metadata=b'{"a":1}'),
        entries.delete_session(),
        entries.message("m2", b'{"id":"m2"}', txid="t"),
        entries.chunks("g1", 0, b'{"type":"text"}', b"1", message_id="m3", lane="side", actor_id="a"),
        entries.finish("g1", 1, status="failed", reason="r", error=b'"e"', usage=b'{"u":1}', metadata=b'{"m":2}'),
        entries.stop("g1", requested_by="me", reason="enough"),
        entries.heartbeat("g1"),
        entries.expire_lease("g1", 2, 77),
        entries.subscribe(("a/b", 5, 2), wake_stream="w", pattern="a/*", description="d", nonce=6),
        entries.link(("a/b", 5, 2), explicit=True, drop=("c",), links_max=9, complete=True),
        entries.attempt(1, 0, ("a/b", 5, 3), delay_ms=900, nonce=7, birth=6),
        entries.claim("me", ("a/b", 5, 3), nonce=8),
        entries.ack(1, "w_7", ("a/b", 5, 3), done=True, snapshot=True, delivered=True, expires=77, birth=6),
        entries.unsubscribe(birth=6),
        entries.open_generation("g1", message_id="m", lane="l", metadata=b"{}", continues="g0", yields=True, txid="t"),
        entries.reset_session(reason="r", nonce=6),
        entries.fork_session(
            6,
            path="sessions/c",
            lineage=(("sessions/s1", 5, 2),),
            deadline_ms=9,
            messages=(InheritedMessage("m1", 1, b"digest"), InheritedMessage("m2", generation_id="g1")),
            generations=(InheritedGeneration("g1", "m2", "l", 1, "text", "user", "failed", 3, 4, 5, "a", "r", b"1"),),
            selector="s",
            metadata=b"{}",
        ),
        entries.stop_session("l", requested_by="me", reason="enough"),
        entries.record("k", b'{"a":1}', record_type="approval"),
        entries.expire_session(2, 9_000, incarnation=5),
        entries.import_session(
            6,
            path="sessions/c",
            lineage=(("a/b", 5, 2),),
            deadline_ms=9,
            messages=(InheritedMessage("m1", 1, b"digest"),),
            generations=(InheritedGeneration("g1", "m1", "l", 1, "text", "user", "failed", 3, 4, 5),),
            metadata=b"{}",
            created_ms=8,
        ),
    ]
    return [msgspec.structs.replace(entry, **stamped) for entry in made]


@pytest.mark.parametrize("entry", one_of_each(), ids=lambda entry: Kind(entry.kind).name)
def test_bytes_of_each_kind_are_fixed_for_ever(entry: Entry) -> None:
    """A journal on somebody's disk has these. A difference is a new FORMAT_VERSION, and the old one is still read."""
    data = bytes.fromhex(GOLDEN[Kind(entry.kind).name])
    assert decode(data) == entry
    assert encode(entry) == data


@pytest.mark.parametrize("kind", BEFORE)
def test_bytes_of_an_older_program_are_the_same_entry_without_what_it_did_not_know(kind: str) -> None:
    (newer,) = (entry for entry in one_of_each() if Kind(entry.kind).name == kind)
    older = decode(bytes.fromhex(BEFORE[kind]))
    assert msgspec.structs.replace(older, options=b"") == msgspec.structs.replace(newer, options=b"")
    known, told = (
        msgspec.msgpack.decode(entry.options, type=type_of_options[Kind(entry.kind)]) for entry in (older, newer)
    )
    fields = msgspec.msgpack.decode(older.options)
    assert msgspec.structs.astuple(told)[: len(fields)] == msgspec.structs.astuple(known)[: len(fields)]


def test_every_kind_has_golden_bytes_and_a_number_of_its_own() -> None:
    reserved = {Kind.MOVING, Kind.MOVED}
    assert {Kind(entry.kind) for entry in one_of_each()} == set(Kind) - reserved
    assert {kind.name: kind.value for kind in Kind} == {
        "NOOP": 0,
        "CREATE": 1,
        "APPEND": 2,
        "CLOSE": 3,
        "DELETE": 4,
        "EXPIRE": 5,
        "TOUCH": 6,
        "PRODUCER_FORGET": 7,
        "FORK_REF": 8,
        "FORK": 9,
        "FORK_UNREF": 10,
        "SESSION_CREATE": 16,
        "SESSION_DELETE": 17,
        "MESSAGE": 18,
        "CHUNKS": 19,
        "FINISH": 20,
        "STOP": 21,
        "HEARTBEAT": 22,
        "LEASE_EXPIRE": 23,
        "GENERATION_OPEN": 24,
        "SESSION_RESET": 25,
        "SESSION_FORK": 26,
        "SESSION_STOP": 27,
        "RECORD": 28,
        "SESSION_EXPIRE": 29,
        "SUBSCRIPTION_CREATE": 32,
        "SUBSCRIPTION_LINK": 33,
        "SUBSCRIPTION_ATTEMPT": 34,
        "SUBSCRIPTION_CLAIM": 35,
        "SUBSCRIPTION_ACK": 36,
        "SUBSCRIPTION_DELETE": 37,
        "IMPORT": 112,
        "MOVING": 113,
        "MOVED": 114,
    }
