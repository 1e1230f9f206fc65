"""The golden journals: `python -m tests.broker.core.golden 1` writes tests/data/golden_journal_v1.bin and .json.

Together they have every kind of entry and most outcomes. A .bin is a journal: a msgpack array of [time in ms, entry
bytes], index 1 first. A .json is what its replay makes: outcomes, rows and the streams' content. All are committed and
replayed for ever. A difference means that `apply` does something else with bytes that are in somebody's journal: that
is a new `APPLY_LEVEL`, the old behaviour stays for the old level, and a new pair of files comes beside these. So files
that are there are never written again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from broker.core.entry import NEXT_SEQ, Entry, InheritedGeneration, InheritedMessage, decode
from broker.core.offset import format_offset
from broker.core.outcome import Outcome
from broker.core.state import encode_row
from tests.broker.core import entries
from tests.broker.core.replica import BEGIN_MS, Replica

DATA = Path(__file__).parents[2] / "data"

Expected = dict[str, Any]
Journal = list[tuple[int, bytes]]
"""Time and bytes of each entry, in order."""


def subscriptions() -> list[tuple[int, Entry]]:
    """The story of v2: subscriptions."""
    e, a, b = entries, ("a/1", 0xA1, 3), ("a/2", 0xA2, 5)
    first, second, third = f"w_{0x71:016x}", f"w_{0x72:016x}", f"w_{0x73:016x}"
    webhook = [
        (0, e.subscribe(("x/1", 0, 0), pattern="a/*", nonce=0x51)),
        (0, e.subscribe(("x/1", 0, 0), pattern="a/*")),
        (0, e.subscribe(pattern="b/*")),
        (1, e.link(("a/1", 0xA1, 1), ("a/2", 0xA2, 5), complete=True)),
        (0, e.link(("a/1", 0xA1, 3))),
        (0, e.link(("a/3", 0xA3, 0), links_max=3)),
        (0, e.link(("a/2", 0xA2, 5), ("x/2", 0, 0), explicit=True)),
        (0, e.link(explicit=True, drop=("a/2", "x/2", "none"))),
        (1, e.attempt(1, 0, b, nonce=0x70)),
        (1, e.attempt(1, 0, a, b, nonce=0x71)),
        (0, e.attempt(2, 0, a, nonce=0x70)),
        (999, e.attempt(1, 1)),
        (1, e.attempt(1, 1, delay_ms=2_000)),
        (0, e.attempt(1, 2)),
        (1, e.claim("worker", a, nonce=0x70)),
        (0, e.ack(2, first)),
        (0, e.ack(1, second)),
        (0, e.ack(1, second, delivered=True)),
        (1, e.ack(1, first, delivered=True)),
        (0, e.ack(1, first, delivered=True)),
        (0, e.ack(1, first, ("a/9", 0xA9, 1))),
        (0, e.ack(1, first, ("a/1", 0xA1, 0))),
        (1, e.ack(1, first, ("a/1", 0xA1, 2))),
        (0, e.ack(1, first, expires=19)),
        (9, e.ack(1, first, done=True, snapshot=True)),
        (0, e.ack(1, first, done=True)),
        (0, e.ack(1, first, expires=24)),
        (1, e.attempt(2, 0, ("a/1", 0xA4, 1), nonce=0x72)),
        (1, e.ack(2, second)),
        (30_000, e.ack(2, second, expires=29)),
        (0, e.link(drop=("a/2", "x/1"))),
        (0, e.unsubscribe(birth=0x50)),
        (0, e.unsubscribe(birth=0x51)),
        (0, e.unsubscribe()),
        (0, e.attempt(3, 0, a)),
    ]
    pull = [
        (1, e.subscribe(wake_stream="a/wake", pattern="**", lease_ms=1_000, description="d", nonce=0x52)),
        (0, e.link(("a/wake", 0xA0, 0), ("a/1", 0xA1, 0))),
        (0, e.claim("worker-1")),
        (1, e.claim("worker-1", a, nonce=0x71)),
        (0, e.claim("worker-2", a)),
        (1, e.ack(1, first, a, done=True)),
        (0, e.claim("worker-2", a)),
        (1, e.attempt(2, 0, ("a/1", 0xA1, 4), nonce=0x72)),
        (1, e.ack(2, second, delivered=True)),
        (0, e.ack(2, second, expires=44)),
        (1, e.claim("worker-2")),
        (0, e.ack(2, second, delivered=True)),
        (1_000, e.ack(2, second, expires=46)),
        (0, e.attempt(3, 0, ("a/1", 0xA1, 4), nonce=0x73)),
        (0, e.ack(3, third)),
    ]
    return webhook + pull


def story() -> list[tuple[int, Entry]]:
    """The story of v1, streams and sessions: the entries, each with the milliseconds since the one before."""
    e = entries
    streams = [
        (0, e.noop()),
        (1, e.create(b"1", b'{"a": [2]}', path="raw", nonce=0xA1)),
        (1, e.create(path="raw", nonce=0xA2)),
        (0, e.create(path="raw", content_type="text/plain", nonce=0xA3)),
        (0, e.append(b'"p0"', path="raw", producer=("p", 1, 0), stream_seq="a")),
        (5, e.append(b'"p1"', b'"p1 too"', path="raw", producer=("p", 1, 1))),
        (0, e.append(b'"p0"', path="raw", producer=("p", 1, 0), stream_seq="a")),
        (0, e.append(b'"other"', path="raw", producer=("p", 1, 1))),
        (0, e.append(b'"gap"', path="raw", producer=("p", 1, 5))),
        (0, e.append(b'"stale"', path="raw", producer=("p", 0, 0))),
        (0, e.append(b'"late"', path="raw", producer=("p", 2, 1))),
        (1, e.append(b'"new epoch"', path="raw", producer=("p", 2, 0))),
        (0, e.append(b'"regression"', path="raw", stream_seq="a")),
        (0, e.append(b'"type"', path="raw", content_type="text/plain")),
        (0, e.append(b'"many"', path="raw", producer=("q", 0, 0), producers_max=1)),
        (0, e.append(b'"q0"', path="raw", producer=("q", 0, 0))),
        (9, e.forget("q", BEGIN_MS + 100, path="raw")),
        (0, e.forget("q", BEGIN_MS + 100, path="raw")),
        (1, e.append(b'"last"', path="raw", producer=("p", 2, 1), closes=True)),
        (0, e.append(b'"last"', path="raw", producer=("p", 2, 1), closes=True)),
        (0, e.append(b'"after"', path="raw")),
        (0, e.close(path="raw")),
        (1, e.create(path="bytes", content_type="application/octet-stream", nonce=0xB1)),
        (0, e.append_bytes(b"\x00\xff\n", path="bytes")),
        (0, e.append_bytes(b"more", path="bytes", producer=("p", 0, 0))),
        (1, e.close(path="bytes", producer=("p", 0, 1))),
        (0, e.close(path="bytes", producer=("p", 0, 1))),
        (1, e.create(path="gone", nonce=0xC1)),
        (0, e.append(b"1", path="gone", producer=("p", 7, 0))),
        (1, e.delete(path="gone")),
        (0, e.delete(path="gone")),
        (0, e.create(path="gone", nonce=0xC2)),
        (0, e.append(b"1", path="gone", incarnation=0xC1)),
        (0, e.append(b"1", path="gone", producer=("p", 0, 0))),
        (1, e.create(path="ttl", ttl_s=1, nonce=0xD1)),
        (1000, e.touch(path="ttl")),
        (1000, e.expire(path="ttl")),
        (100, e.expire(path="ttl")),
        (1, e.create(b"1", path="ttl", ttl_s=1, nonce=0xD2)),
        (1100, e.append(b"2", path="ttl")),
        (1, e.create(path="then", expires_at_ms=BEGIN_MS + 10_000, nonce=0xE1)),
        (0, e.touch(path="then")),
        (10_000, e.create(b"1", path="then", closed=True, nonce=0xE2)),
    ]
    forks = [
        (1, e.create(b"0", b"1", b"2", path="source", nonce=0xF1)),
        (0, e.fork_ref("child", 0xF2, path="source", offset=format_offset(2, 0xF1))),
        (0, e.fork(b'"mine"', path="child", child=0xF2, lineage=(("source", 0xF1, 2),), source_path="source")),
        (0, e.fork(path="child", child=0xF3, lineage=(("source", 0xF1, 2),), source_path="source")),
        (0, e.fork(path="late", child=0xF4, lineage=(("source", 0xF1, 2),), source_path="source", deadline_ms=1)),
        (0, e.fork_ref("other", 0xF5, path="source", offset=format_offset(9, 0xF1))),
        (0, e.fork_ref("other", 0xF5, path="source", forks_max=1)),
        (1, e.delete(path="source")),
        (0, e.append(b"3", path="source")),
        (0, e.create(path="source")),
        (0, e.append(b'"more"', path="child", producer=("p", 0, 0))),
        (1, e.delete(path="child")),
        (0, e.fork_unref("child", 0xF2, path="source")),
        (0, e.fork_unref("child", 0xF2, path="source")),
    ]
    sessions = [
        (1, e.create_session("m1", b'{"id":"m1","role":"user"}', metadata=b'{"title":"t"}')),
        (0, e.create_session()),
        (0, e.message("m1", b'{"id":"m1","role":"user"}')),
        (0, e.message("m1", b"{}")),
        (1, e.message("m2", b'{"id": "m2"}', txid="tx")),
        (1, e.chunks("g1", 0, b'"a"', b'{"b": 1}', message_id="m3", actor_id="me")),
        (1, e.chunks("g1", 1, b'"c"')),
        (0, e.chunks("g1", 1, b'"c"')),
        (0, e.chunks("g1", 1, b'"x"')),
        (0, e.finish("g1", 3)),
        (1, e.finish("g1", 2, usage=b'{"out":3}', metadata=b'{"k":[]}')),
        (0, e.finish("g1", 2, usage=b'{"out":3}', metadata=b'{"k":[]}')),
        (0, e.chunks("g1", 3, b'"d"')),
        (1, e.chunks("g2", 0, b"1")),
        (1, e.chunks("g3", 0, b"1", txid="tx")),
        (1, e.chunks("side", 0, b"1", lane="side", lanes_max=1)),
        (1, e.chunks("side", 0, b"1", lane="side")),
        (0, e.chunks("g4", 0, b"1", message_id="m1")),
        (1, e.stop("g3", requested_by="you", reason="enough")),
        (0, e.stop("g3")),
        (1, e.heartbeat("side")),
        (0, e.heartbeat("g3")),
        (0, e.expire_lease("side", 1, 60)),
        (1, e.expire_lease("side", 1, 64)),
        (0, e.expire_lease("nobody", 1, 64)),
        (1, e.finish("g5", 0, status="failed", reason="timeout", error=b'{"code":504}')),
        (1, e.chunks("g6", 0, b'"open"')),
        (1, e.create_session(path="sessions/s2")),
        (1, e.chunks("g1", 0, b"1", path="sessions/s2")),
        (1, e.delete_session(path="sessions/s2")),
        (0, e.delete_session(path="sessions/s2")),
        (1, e.create_session(path="sessions/s2")),
        (1, e.chunks("g1", 0, b"2", path="sessions/s2")),
        (0, e.message("m", path="sessions/none")),
    ]
    return streams + sessions + forks


def expected(journal: Journal) -> Expected:
    """What a replay makes, as the .json has it."""
    replica = Replica()
    outcomes = [told(replica.do(decode(data), after_ms=time_ms - replica.now_ms)) for time_ms, data in journal]
    return {
        "outcomes": outcomes,
        "rows": {key.decode().replace("\0", "|"): encode_row(row).hex() for key, row in sorted(replica.rows.items())},
        "content": {
            f"{path}@{incarnation:x}": [[page.start, page.end, page.data.decode("latin-1")] for page in pages]
            for (path, incarnation), pages in replica.pages.items()
        },
        "ended": [[path, life] for path, life in replica.ended],
    }


def told(outcome: Outcome) -> list[Any]:
    """Whatever of an outcome reaches a client."""
    generation = outcome.generation
    return [
        outcome.result.name if outcome.code is None else outcome.code.value,
        outcome.next_position,
        outcome.epoch,
        outcome.seq,
        outcome.expected_seq,
        None if generation is None else [generation.generation_id, generation.status, generation.reason],
    ]


def read(version: str) -> tuple[Journal, Expected]:
    """A committed golden journal, and what its replay made when it was written."""
    journal = msgspec.msgpack.decode((DATA / f"golden_journal_{version}.bin").read_bytes(), type=Journal)
    return journal, json.loads((DATA / f"golden_journal_{version}.json").read_text(encoding="utf-8"))


def lifecycle() -> list[tuple[int, Entry]]:
    """The story of v3: generations that are opened ahead or continue others, batches without numbers, resets, forks."""
    e, first, second, third, child = entries, 0x51, 0x52, 0x53, 0x61
    part = (("sessions/s1", first, 4),)
    inherited = (
        InheritedGeneration(
            "g1", "m1", "main", 1, "text", "assistant", "failed", 1, BEGIN_MS, BEGIN_MS + 1, reason="r"
        ),
        InheritedGeneration("gx", "mx", "side", 4, "text", "assistant", "streaming", 2, BEGIN_MS, continues="g0"),
    )
    messages = (InheritedMessage("u1", 1, b"12345678"), InheritedMessage("m1", generation_id="g1"))
    generations = [
        (0, e.create_session("u1", b'{"id":"u1","role":"user"}', metadata=b'{"a":1}', nonce=first)),
        (0, e.create_session(metadata=b'{"a":2}')),
        (0, e.create_session(metadata=b'{"a":1}')),
        (1, e.open_generation("g1", message_id="m1", metadata=b'{"k":1}', txid="t")),
        (0, e.open_generation("g1", message_id="m1", metadata=b'{"k":1}')),
        (0, e.open_generation("g1", message_id="m2")),
        (0, e.open_generation("gx", message_id="u1")),
        (1, e.chunks("g1", 0, b'"a"')),
        (1, e.expire_lease("g1", 1, 8)),
        (0, e.open_generation("g1", message_id="m1", metadata=b'{"k":1}')),
        (1, e.chunks("g2", 0, b'"b"', continues="g1")),
        (0, e.chunks("gx", 0, b'"x"', continues="g1")),
        (0, e.chunks("gx", 0, b'"x"', continues="nothing")),
        (0, e.chunks("gx", 0, b'"x"', continues="g2", message_id="other")),
        (1, e.open_generation("g3", continues="g2")),
        (0, e.open_generation("g4", yields=True)),
        (1, e.chunks("g4", 0, b'"c"')),
        (1, e.open_generation("g5", continues="g3")),
        (0, e.open_generation("g5", continues="g3")),
        (1, e.chunks("g5", 0, b'"d"')),
        (1, e.finish("g5", 1)),
    ]
    unnumbered = [
        (1, e.chunks("n1", NEXT_SEQ, b'"1"')),
        (0, e.chunks("n1", NEXT_SEQ, b'"1"')),
        (0, e.chunks("n1", NEXT_SEQ, b'"1"', message_id="other")),
        (0, e.chunks("n1", 2, b'"2"')),
        (1, e.finish("n1", NEXT_SEQ)),
        (0, e.finish("n1", NEXT_SEQ)),
        (0, e.finish("n1", NEXT_SEQ, status="failed")),
        (0, e.chunks("n1", NEXT_SEQ, b'"3"')),
        (0, e.finish("n2", NEXT_SEQ)),
    ]
    stops = [
        (1, e.chunks("a1", 0, b"1", lane="a", lanes_max=2)),
        (1, e.chunks("a1", 0, b"1", lane="a", lanes_max=2, frees_lanes=True)),
        (1, e.chunks("b1", 0, b"1", lane="b")),
        (1, e.record("ann", b'{"here": true}')),
        (0, e.record("call", b"{}", record_type="approval")),
        (1, e.stop_session("b", requested_by="you", reason="enough")),
        (1, e.stop_session()),
        (0, e.stop_session()),
        (1, e.chunks("a2", 0, b"1", lane="a")),
        (1, e.chunks("g6", 0, b"1", lane="main")),
    ]
    forks = [
        (1, e.fork_ref("sessions/c", child, path="sessions/s1", offset=format_offset(4, first))),
        (
            1,
            e.fork_session(
                child,
                path="sessions/c",
                lineage=part,
                messages=messages,
                generations=inherited,
                selector="here",
                metadata=b"{}",
            ),
        ),
        (0, e.fork_session(child, path="sessions/c", selector="here")),
        (0, e.fork_session(child, path="sessions/c", lineage=part, selector="there")),
        (0, e.fork_session(0x62, path="sessions/late", lineage=part, deadline_ms=1)),
        (0, e.message("m1", path="sessions/c")),
        (0, e.chunks("g1", 0, b"1", path="sessions/c")),
        (1, e.chunks("g9", 0, b"1", path="sessions/c", continues="gx")),
    ]
    resets = [
        (1, e.reset_session(reason="again", nonce=second)),
        (0, e.chunks("g6", 0, b"1", lane="main")),
        (0, e.chunks("g6", 1, b"1", lane="main")),
        (0, e.chunks("g7", 0, b"1", continues="g6")),
        (1, e.message("u1")),
        (1, e.chunks("g8", 0, b"1", message_id="m1")),
        (1, e.reset_session(nonce=third)),
        (0, e.reset_session(path="sessions/none")),
        (0, e.stop_session(path="sessions/none")),
        (0, e.record("ann", path="sessions/none")),
        (0, e.open_generation("g", path="sessions/none")),
        (1, e.reset_session(path="sessions/c", nonce=0x63)),
        (1, e.fork_unref("sessions/c", child, path="sessions/s1", incarnation=first)),
        (0, e.fork_unref("sessions/c", child, path="sessions/s1", incarnation=first)),
        (1, e.fork_ref("sessions/d", 0x64, path="sessions/s1")),
        (1, e.reset_session(nonce=0x54)),
        (1, e.delete_session()),
        (0, e.create_session()),
        (0, e.fork_session(0x65, path="sessions/s1", lineage=part)),
        (1, e.fork_unref("sessions/d", 0x64, path="sessions/s1", incarnation=third)),
    ]
    return generations + unnumbered + stops + forks + resets


def imports() -> list[tuple[int, Entry]]:
    """The story of v4: sessions out of records that lie in a stream."""
    e, staged, child = entries, 0x71, 0x81
    part = (("imports/1", staged, 3),)
    message = InheritedMessage("q", 1, b"digest")
    answer = InheritedMessage("m", generation_id="g")
    generation = InheritedGeneration(
        "g", "m", "side", 7, "text", "assistant", "failed", 1, BEGIN_MS - 9, BEGIN_MS - 5, "me", "r", b"1", b"2", b"{}"
    )
    made = e.import_session(
        child,
        path="sessions/i",
        source_path="imports/1",
        lineage=part,
        messages=(message, answer),
        generations=(generation,),
        created_ms=BEGIN_MS - 10,
    )
    return [
        (1, e.create(b"1", b"2", b"3", path="imports/1", nonce=staged)),
        (1, e.fork_ref("sessions/i", child, path="imports/1")),
        (1, made),
        (0, e.import_session(child, path="sessions/i", source_path="imports/1")),
        (0, e.import_session(child, path="sessions/i", source_path="imports/2")),
        (0, e.import_session(0x82, path="sessions/late", source_path="imports/1", lineage=part, deadline_ms=1)),
        (0, e.import_session(0x83, path="sessions/none", source_path="imports/1")),
        (1, e.delete(path="imports/1")),
        (1, e.chunks("g", 0, b'"late"', path="sessions/i")),
        (1, e.message("q", path="sessions/i")),
        (1, e.chunks("h", 0, b'"new"', path="sessions/i", lane="side")),
        (1, e.finish("h", 1, path="sessions/i")),
        (1, e.delete_session(path="sessions/i")),
        (1, e.fork_unref("sessions/i", child, path="imports/1")),
    ]


def unused() -> list[tuple[int, Entry]]:
    """The story of v5: sessions that nobody uses."""
    e, first, second, third = entries, 0x91, 0x92, 0x93
    return [
        (0, e.create_session(nonce=first)),
        (0, e.create_session(path="sessions/ahead", nonce=second)),
        (1, e.open_generation("g", path="sessions/ahead")),
        (0, e.expire_session(2, path="sessions/ahead")),
        (9, e.expire_lease("g", 1, 3, path="sessions/ahead")),
        (900, e.expire_session()),
        (100, e.expire_session(incarnation=second)),
        (0, e.expire_session(1)),
        (0, e.expire_session(incarnation=first)),
        (0, e.expire_session()),
        (900, e.expire_session(2, path="sessions/ahead")),
        (0, e.create_session(nonce=third)),
        (1, e.message("m")),
        (9_999, e.expire_session()),
        (0, e.expire_session(1, 10_001)),
        (1, e.expire_session(1, 10_000)),
    ]


stories = {"v1": story, "v2": subscriptions, "v3": lifecycle, "v4": imports, "v5": unused}


def write(version: str) -> None:
    """Write the story as a new golden journal. Raises FileExistsError for one that is there."""
    replica = Replica()
    for after_ms, entry in stories[version]():
        replica.do(entry, after_ms=after_ms)
    with (DATA / f"golden_journal_{version}.bin").open("xb") as journal:
        journal.write(msgspec.msgpack.encode(replica.history))
    with (DATA / f"golden_journal_{version}.json").open("x", encoding="utf-8") as made:
        json.dump(expected(replica.history), made, indent=1, ensure_ascii=True)
        made.write("\n")


if __name__ == "__main__":
    write(f"v{int(sys.argv[1])}")
