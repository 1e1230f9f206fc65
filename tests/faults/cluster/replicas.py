"""What each node has, over HTTP and on its disk, held against the other nodes and against the replayed log."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from broker.journal.cluster_record import Mark, decode_mark
from tests.faults.client import SESSIONS, STREAMS
from tests.faults.cluster.raw_log import Replay
from tests.faults.readers import START


class Dump(NamedTuple):
    """A stream from start to end, as one node serves it; a session's messages as well."""

    status: int
    content: bytes = b""
    end: str = ""
    closed: bool = False
    messages: Any = None


async def dumped(url: str, paths: Sequence[str]) -> dict[str, Dump]:
    """These streams, from one node."""
    async with httpx.AsyncClient(base_url=url, timeout=30.0) as client:
        return {path: await _dump(client, path) for path in paths}


async def _dump(client: httpx.AsyncClient, path: str) -> Dump:
    offset, pieces, is_json = START, list[bytes](), False
    while True:
        page = await client.get(f"{STREAMS}/{path}", params={"offset": offset})
        if page.status_code != 200:
            return Dump(page.status_code)
        is_json = page.headers["content-type"].startswith("application/json")
        pieces.append(page.content.strip()[1:-1] if is_json else page.content)
        offset, closed = page.headers["stream-next-offset"], page.headers.get("stream-closed") == "true"
        if page.headers.get("stream-up-to-date") == "true":
            break
    content = b",".join(filter(None, pieces)) if is_json else b"".join(pieces)
    return Dump(200, content, offset, closed, await _messages(client, path))


async def _messages(client: httpx.AsyncClient, path: str) -> Any:
    if not path.startswith("sessions/"):
        return None
    return (await client.get(f"{SESSIONS}/{path.removeprefix('sessions/')}/messages")).json()


def differences(dumps: Mapping[str, Mapping[str, Dump]]) -> list[str]:
    """Where nodes (by name) do not have the same."""
    (first, expected), *others = dumps.items()
    found = []
    for name, dump in others:
        for path in expected.keys() | dump.keys():
            ours, theirs = expected.get(path), dump.get(path)
            if ours != theirs:
                found.append(f"{path} at {first} is {_shown(ours)}, and at {name} {_shown(theirs)}")
    return found


def _shown(dump: Dump | None) -> str:
    if dump is None:
        return "unknown"
    return f"{dump.status} with {len(dump.content)} bytes to {dump.end}, closed: {dump.closed}"


def unlike_the_log(replays: Sequence[Replay], dump: Mapping[str, Dump]) -> list[str]:
    """Where what a node serves is not what the log makes."""
    found = [f"partition {number}: {fault}" for number, replay in enumerate(replays) for fault in replay.faults]
    in_log: set[str] = set()
    for replay in replays:
        for path, stream in replay.streams():
            in_log.add(path)
            served = dump.get(path, Dump(404))
            expected = (replay.content(path), stream.offset(stream.tail), stream.closed)
            content = served.content
            if stream.lineage and content.endswith(expected[0]):
                content = expected[0]  # what it inherits is its source's, and elsewhere in the log
            if (content, served.end, served.closed) != expected:
                found.append(f"{path} is {_shown(served)}; the log has {len(expected[0])} bytes to {expected[1]}")
    return found + [f"{path} is served, and not in the log" for path in dump.keys() - in_log]


def paths_in(replays: Sequence[Replay]) -> list[str]:
    """All streams that the log makes."""
    return [path for replay in replays for path, _ in replay.streams()]


class Stored(NamedTuple):
    """Where a node's store of one partition stands."""

    applied_index: int
    mark: Mark


def stored(data_dir: Path, partition: int) -> Stored | None:
    """What is in the store of a node that does not run; None where nothing was ever written."""
    connection = sqlite3.connect(data_dir / f"partition-{partition}" / "store.sqlite")
    try:
        index, mark = connection.execute("SELECT applied_index, mark FROM head").fetchone()
    finally:
        connection.close()
    return Stored(index, decode_mark(mark)) if mark else None


def unlike_the_chain(replay: Replay, store: Stored) -> list[str]:
    """Whether a store stands at a place of the log at all, with the outcomes that the log makes."""
    position = store.mark.position
    found = []
    if replay.indexes.get(position) != store.applied_index:
        found.append(
            f"the store stands at index {store.applied_index}, position {position}: {replay.indexes.get(position)}"
        )
    if replay.chains.get(position) != store.mark.chain:
        found.append(f"the store has another chain before position {position} than the log makes")
    return found
