"""broker/http/acks.py: what an upload is told of its batches, however it is put together."""

import json
from typing import Any

import msgspec

from broker.core.entry import Entry, Kind
from broker.core.offset import format_offset
from broker.core.outcome import Outcome, Result
from broker.core.state import Generation
from broker.http.acks import Acks

GENERATION = Generation(1, 2, "g", "m", "main", 7, "text", "assistant", "", 30_000, 0, 0)


def told(acks: Acks, seq: int, outcome: Outcome, generation: Generation = GENERATION) -> Any:
    acks.add(Entry(Kind.CHUNKS, "sessions/s", seq=seq), outcome, generation)
    assert acks.seq == seq
    return json.loads(acks.newest())


def as_told(seq: int, position: int, **changed: object) -> dict[str, object]:
    ids = {"sessionId": "s", "generationId": "g", "messageId": "m"}
    return {"seq": seq, "fence": 7, **ids, "offset": format_offset(position, 2), **changed}


def test_nothing_is_told_before_the_first() -> None:
    acks = Acks("s")
    assert (acks.newest(), acks.seq) == (b"", -1)


def test_each_names_its_own_numbers_and_the_same_ids() -> None:
    acks = Acks("s")
    for seq, position in ((0, 5), (1, 6), (300, 2**40)):
        assert told(acks, seq, Outcome(Result.ACCEPTED, next_position=position)) == as_told(seq, position)
        assert acks.position == position


def test_new_fence_or_message_is_told_from_then_on() -> None:
    acks, accepted = Acks("s"), Outcome(Result.ACCEPTED, next_position=5)
    told(acks, 0, accepted)
    raised = msgspec.structs.replace(GENERATION, fence=8)
    assert told(acks, 1, accepted, raised) == as_told(1, 5, fence=8)
    other = msgspec.structs.replace(raised, message_id="n")
    assert told(acks, 2, accepted, other) == as_told(2, 5, fence=8, messageId="n")


def test_copy_is_told_where_its_original_landed_as_long_as_that_is_known() -> None:
    acks = Acks("s")
    known = Outcome(Result.DUPLICATE, next_position=4)
    assert told(acks, 3, known) == as_told(3, 4, duplicate=True)
    forgotten = as_told(4, 0, duplicate=True)
    del forgotten["offset"]
    assert told(acks, 4, Outcome(Result.DUPLICATE)) == forgotten
    assert acks.position == 4
