"""broker/folded.py: at every position a session is what the records below it fold to, however it got there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.folded import IDLE_RECORDS, MESSAGE_BYTES, Folded
from broker.store import Snapshot
from consumer.fold import FORMATS, Fold
from consumer.plain import decode, encode
from consumer.session import BadSessionState, SessionFold
from tests.consumer.records import answer, chunk, ended, opened, stop, whole

PATH = "sessions/s"
DATA = Path(__file__).parents[1] / "data"
VECTORS_MAX = 7
"""Of each file: the first, and the rest spread over it. All of them are folded elsewhere."""


def log_of(*records: Any) -> list[bytes]:
    return [encode(record) for record in records]


def vectors() -> Iterator[Any]:
    for file in sorted(DATA.glob("*.jsonl")):
        found: list[Any] = [decode(line) for line in file.read_bytes().splitlines()]
        found = [vector for vector in found if isinstance(vector, dict) and vector.get("format") in FORMATS]
        yield from found[:: max(1, len(found) // VECTORS_MAX)]


def vector_log() -> list[bytes]:
    """One session in which every vector is an answer; some lanes run side by side, some ends are not good."""
    chance = random.Random(7)
    running: list[tuple[str, str, list[Any]]] = []
    found: list[Any] = [whole("question", parts=[{"type": "text", "text": "?"}])]
    for number, vector in enumerate(vectors()):
        generation_id, chunk_format = f"g{number}", vector["format"]
        found.append(opened(generation_id, f"m{number}", chunk_format=chunk_format))
        running.append((generation_id, chunk_format, [*enumerate(vector["chunks"][:40])]))
        while len(running) > chance.randrange(3):
            generation_id, chunk_format, left = chance.choice(running)
            message_id = f"m{generation_id[1:]}"
            if left:
                found.append(chunk(generation_id, left[0][0], message_id, left.pop(0)[1]))
                continue
            running.remove((generation_id, chunk_format, left))
            status = chance.choice(["complete", "failed", "aborted"])
            found += [stop(generation_id, message_id)] if status == "aborted" else []
            found.append(ended(generation_id, message_id, status, chunk_format=chunk_format))
            found.append(whole(f"user-{generation_id}"))
    return log_of(*found)


def items_of(session: Folded | SessionFold) -> bytes:
    items: Any = (session.fold if isinstance(session, Folded) else session).items()
    return encode(items)


def folded_to(log: list[bytes], position: int) -> Folded:
    folded = Folded(1)
    folded.add(log[:position])
    return folded


def snapshot_of(folded: Folded) -> Snapshot:
    """As a checkpoint takes it; the whole, because nothing was taken before."""
    due = folded.due(PATH)
    due.encode()
    snapshot = due.snapshot()
    folded.saved(snapshot)
    return snapshot


def whole_snapshot(*parts: Snapshot) -> Snapshot:
    """What the store has of several snapshots of one life."""
    messages = {ordinal: (ordinal, message_id, data) for part in parts for ordinal, message_id, data in part.messages}
    return Snapshot(PATH, 1, parts[-1].position, [messages[ordinal] for ordinal in sorted(messages)])


# -- snapshot(X) = fold(log[0..X]) -----------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_every_position_of_the_vectors_is_the_fold_of_the_log_up_to_it() -> None:
    """Forwards through snapshots of what changed, and backwards from the end: both at every X."""
    log = vector_log()
    end = folded_to(log, len(log))
    plain, walking, parts = SessionFold(), Folded(1), list[Snapshot]()
    for position in range(len(log) + 1):
        items = items_of(plain)
        earlier = end.earlier(position)
        assert earlier.position <= position
        earlier.add(log[earlier.position : position])
        assert items_of(earlier) == items, f"going back to {position}"
        assert items_of(walking) == items, f"restored at {position}"
        if position < len(log):
            plain.add(log[position])
            walking.add(log[position : position + 1])
            if position % 5 == 0:
                parts.append(snapshot_of(walking))
                walking = Folded.restored(whole_snapshot(*parts))
    assert plain.malformed == 0


def test_going_back_leaves_the_session_as_it_was() -> None:
    log = vector_log()
    end = folded_to(log, len(log))
    before = items_of(end)
    for position in range(0, len(log), 40):
        earlier = end.earlier(position)
        earlier.add(log[earlier.position :])
        assert items_of(earlier) == before
    assert items_of(end) == before


def test_going_back_folds_no_more_than_the_messages_that_were_not_done() -> None:
    log = log_of(*answer("a", "ma", *"xxxxxxxxxx"), *answer("b", "mb", *"yyyyyyyyyy"), whole("q"))
    end = folded_to(log, len(log))
    assert [end.earlier(position).position for position in (0, 5, 12, 13, 20, 24, 25)] == [0, 0, 12, 12, 12, 24, 25]


def test_session_that_was_restored_goes_back_as_well() -> None:
    log = vector_log()
    restored = Folded.restored(snapshot_of(folded_to(log, len(log))))
    for position in range(0, len(log), 7):
        earlier = restored.earlier(position)
        earlier.add(log[earlier.position : position])
        assert items_of(earlier) == items_of(folded_to(log, position))


def test_what_is_due_stays_as_it_is_while_the_session_is_folded_on() -> None:
    """The view that another thread encodes is never torn."""
    log = vector_log()
    folded, dues = Folded(1), []
    for position, record in enumerate(log):
        folded.add([record])
        if position % 11 == 0:
            dues.append((folded.due(PATH), snapshot_of(folded_to(log, position + 1))))
    for due, expected in dues:
        due.encode()
        told = {message_id: data for _, message_id, data in due.snapshot().messages}
        assert due.snapshot().position == expected.position
        assert all(told[mid] == data for _, mid, data in expected.messages if mid in told)


def test_state_of_a_fold_stays_as_it_is_while_chunks_come() -> None:
    checked = 0
    for vector in vectors():
        folding, told = Fold.start(vector["format"]), []
        for given in vector["chunks"]:
            state = folding.state()
            told.append((state, encode(state)))
            folding.add(given)
        assert all(encode(state) == data for state, data in told), vector["name"]
        checked += 1
    assert checked > 50


# -- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", bytes(15), bytes(16), bytes(16) + b"{}"])
def test_stored_message_that_none_was_is_told_as_such(data: bytes) -> None:
    with pytest.raises(BadSessionState):
        Folded.restored(Snapshot(PATH, 1, 1, [(0, "m", data)]))


def test_snapshot_that_was_not_stored_is_due_again() -> None:
    folded = folded_to(log_of(whole("a"), whole("b")), 2)
    due = folded.due(PATH)
    assert not folded.changed
    folded.add(log_of(whole("c")))
    folded.unsaved(due.message_ids)
    assert [message_id for _, message_id, _ in snapshot_of(folded).messages] == ["a", "b", "c"]


def test_records_that_change_no_message_are_not_read_again_and_again() -> None:
    folded = folded_to(log_of(whole("a")), 1)
    snapshot_of(folded)
    folded.add(log_of(*[stop("g", "m")] * (IDLE_RECORDS - 1)))
    before = folded.is_due
    folded.add(log_of(stop("g", "m")))
    assert (before, folded.is_due) == (False, True)
    moved, again = snapshot_of(folded), folded.is_due
    assert (moved.position, [*moved.messages], again) == (1 + IDLE_RECORDS, [], False)


def test_size_is_that_of_the_messages_once_they_were_stored() -> None:
    log = log_of(*answer("g", "m", *["x"] * 1000), whole("q"))
    folded = folded_to(log, len(log))
    assert folded.size_bytes == 2 * MESSAGE_BYTES + sum(map(len, log))
    snapshot = snapshot_of(folded)
    assert folded.size_bytes == 2 * MESSAGE_BYTES + sum(len(data) for _, _, data in snapshot.messages)
    assert Folded.restored(snapshot).size_bytes == folded.size_bytes
