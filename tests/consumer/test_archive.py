"""consumer/archive.py: what a session's log is, and what a file of one is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from consumer.archive import ArchiveReader, BadArchive, BadRecord, LogCheck
from consumer.plain import encode
from tests.consumer.records import answer, chunk, ended, opened, stop, whole

HEADER = {"streamfold": "session", "version": 1, "sessionId": "s", "createdAt": "2026-01-01T00:00:00.000Z"}
LOG = [whole("q"), *answer("g", "m", "a", "b"), stop("g", "m"), *answer("h", "n", "c", status="failed")]


def file_of(*records: Any, header: Any = HEADER) -> list[bytes]:
    lines = [encode(line) for line in (header, *records)]
    digest = hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()
    return [*lines, encode({"records": len(records), "sha256": digest})]


def read(lines: list[bytes]) -> list[bytes]:
    reader = ArchiveReader()
    found = [record for record in map(reader.add, lines) if record is not None]
    reader.require_whole()
    assert reader.records == len(found)
    return found


def changed(record: Any, **changes: Any) -> Any:
    return {**record, **changes}


def with_value(record: Any, **changes: Any) -> Any:
    return changed(record, value={**record["value"], **changes})


def test_whole_file_gives_its_records_as_they_are_spelled() -> None:
    lines = file_of(*LOG)
    assert read(lines) == lines[1:-1]
    assert read(file_of()) == []


def test_logs_that_brokers_write_are_logs() -> None:
    going_on = with_value(opened("h", "m"), continues="g")
    for log in (
        LOG,
        [opened("g", "m"), ended("g", "m")],
        [*answer("g", "m", "a", status="aborted"), going_on, chunk("h", 0, "m", "b"), ended("h", "m")],
        [whole("q", "upsert"), whole("q", "upsert")],
        [{"type": "presence", "key": "ann", "value": {"x": 1}, "headers": {"operation": "upsert", "txid": "t"}}],
        [opened("g", "m"), opened("h", "n"), chunk("h", 0, "n", None), ended("g", "m"), ended("h", "n")],
    ):
        assert len(read(file_of(*log))) == len(log)


SPOILED: list[tuple[Callable[[list[bytes]], list[bytes]], str]] = [
    (lambda _: [], "line 0: the file ends before its last line"),
    (lambda file: file[:-1], "line 10: the file ends before its last line"),
    (lambda file: [*file, b"{}"], "line 12: something follows the last line"),
    (lambda file: [b"hello", *file], "line 1: "),
    (lambda file: [file[0], b"", *file[1:]], "line 2: "),
    (lambda file: [*file[:3], *file[4:]], "line 4: chunk 'g:1' where 'g:0' is the next"),
    (lambda file: [*file[:6], *file[7:]], "line 10: what came before is not what was exported"),
    (
        lambda file: [file[0].replace(b'"s"', b'"t"'), *file[1:]],
        "line 11: what came before is not what was exported",
    ),
    (lambda _: file_of(header={**HEADER, "version": 2}), "line 1: "),
    (lambda _: file_of(header={**HEADER, "sessionId": "a/b"}), "line 1: "),
    (lambda _: file_of(header={**HEADER, "sessionId": "a\n"}), "line 1: "),
    (lambda _: file_of(header={**HEADER, "createdAt": "2026-13-01T00:00:00.000Z"}), "line 1: no time"),
    (lambda _: file_of(header={**HEADER, "more": 1}), "line 1: "),
    (lambda _: file_of(opened("g", "m")), "line 3: generation 'g' has not ended"),
]


@pytest.mark.parametrize(("spoil", "told"), SPOILED, ids=map(str, range(len(SPOILED))))
def test_file_that_is_no_session_is_told_with_its_line(spoil: Callable[[list[bytes]], list[bytes]], told: str) -> None:
    with pytest.raises(BadArchive) as raised:
        read(spoil(file_of(*LOG)))
    assert str(raised.value).startswith(told)


NO_RECORDS: list[Any] = [
    "text",
    [1],
    changed(whole("z"), type="unheard-of"),
    changed(whole("z"), more=1),
    changed(whole("z"), headers={}),
    changed(whole("z"), headers={"operation": "delete"}),
    changed(whole("z"), headers={"operation": "insert", "txid": None}),
    changed(whole("z"), key="y"),
    with_value(whole("z"), role=None),
    changed(whole(".."), key=".."),
    whole("q"),
    whole("m", "upsert"),
    chunk("g", 2, "m", "late"),
    chunk("x", 0, "y", "of nothing"),
    chunk("open", 1, "o", "ahead"),
    chunk("open", 0, "m", "of another message"),
    with_value(chunk("open", 0, "o", ""), more=1),
    ended("x", "y"),
    ended("g", "m"),
    ended("open", "m"),
    opened("new", "m"),
    opened("new", "q"),
    with_value(opened("new", "y"), continues="g"),
    with_value(opened("new", "m"), continues="h"),
    with_value(opened("new", "o"), continues="open"),
    with_value(opened("new", "y"), fence=0),
    with_value(opened("new", "y"), lane=""),
    with_value(opened("new", "y"), reason=None),
    with_value(opened("new", "y"), usage=[]),
    with_value(opened("new", "y"), status="asleep"),
    with_value(opened("new", "y"), createdAt="yesterday"),
    with_value(opened("new", "y"), endedAt="tomorrow"),
    with_value(opened("new", "y"), unheard="of"),
    with_value(opened("new", ".."), lane="a"),
    stop("x", "y"),
    {"type": "presence", "key": "", "value": {}, "headers": {"operation": "upsert"}},
    {"type": "presence", "key": "k", "value": 1, "headers": {"operation": "upsert"}},
]


@pytest.mark.parametrize("record", NO_RECORDS, ids=map(str, range(len(NO_RECORDS))))
def test_record_that_no_broker_writes_here_is_refused_and_changes_nothing(record: Any) -> None:
    check = LogCheck()
    for good in (*LOG, opened("open", "o")):
        check.add(encode(good))
    with pytest.raises(BadRecord):
        check.add(encode(record))
    for good in (chunk("open", 0, "o", "x"), ended("open", "o"), whole("z")):
        check.add(encode(good))
    check.require_ended()


def test_what_is_quoted_can_be_told() -> None:
    with pytest.raises(BadRecord) as raised:
        LogCheck().add(b'{"type":"stop","key":"\\ud83d","value":{},"headers":{"operation":"insert"}}')
    assert str(raised.value).encode()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 10_000, b'{"a":' * 400 + b"1" + b"}" * 400])
def test_text_that_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(BadRecord):
        LogCheck().add(text)
