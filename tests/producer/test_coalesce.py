"""Joined deltas fold to the same message, whatever the chunks are and wherever the batches are cut."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from consumer.fold import Fold
from consumer.plain import decode, encode
from producer.coalesce import Coalescer, Run, coalesced, has_no_effect
from producer.encoding import encode_chunk
from tests.vectors import CHECKS, Vector, first_difference, initial_of, is_unread, name_of, vectors_in

DATA = Path(__file__).parents[1] / "data"
NO_CHUNKS = {"ai-sdk-sse", "partial-json"}


def all_vectors() -> Iterator[Vector]:
    for file in sorted(DATA.glob("*.jsonl")):
        for vector in vectors_in(file):
            if vector["format"] in CHECKS and vector["format"] not in NO_CHUNKS:
                yield {**vector, "chunks": [chunk for chunk in vector["chunks"] if not is_unread(chunk)]}


VECTORS = list(all_vectors())


def told(vector: Vector, chunks: Sequence[Any]) -> Any:
    """All that a reader can learn from the fold at the end; where errors were is told by chunks, which differ."""
    folding = Fold.start(vector["format"], initial_of(vector))
    for chunk in chunks:
        folding.add(chunk)
    seen: Any = [folding.message, folding.emitted, folding.final(), folding.finish_reason, folding.failed]
    return decode(encode(seen))


def in_batches(vector: Vector, cuts: Sequence[int]) -> list[Any]:
    """Joined batch by batch, cut at these places."""
    chunks = vector["chunks"]
    places = [0, *sorted({cut for cut in cuts if cut < len(chunks)}), len(chunks)]
    return [chunk for begin, end in pairwise(places) for chunk in coalesced(vector["format"], chunks[begin:end])]


def assert_same(vector: Vector, chunks: Sequence[Any], how: str) -> None:
    difference = first_difference(told(vector, vector["chunks"]), told(vector, chunks))
    assert difference is None, f"{vector['format']}, {name_of(vector)}, {how}: {difference}"


def test_every_vector_joined_as_one_batch_folds_to_the_same_message() -> None:
    joined = Counter[str]()
    for vector in VECTORS:
        chunks = list(coalesced(vector["format"], vector["chunks"]))
        joined[vector["format"]] += len(vector["chunks"]) - len(chunks)
        assert_same(vector, chunks, "in one batch")
    assert min(joined.values()) > 0, f"there was something to join in every format: {joined}"


def test_every_prefix_of_a_joined_vector_is_a_prefix_of_the_message() -> None:
    """A reader that looks between two batches sees what it would have seen without joining."""
    for vector in VECTORS[::3]:
        chunks = vector["chunks"]
        cut = len(chunks) // 2
        prefix = {**vector, "chunks": chunks[:cut]}
        assert_same(prefix, list(coalesced(vector["format"], chunks[:cut])), f"first {cut}")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_split_of_a_vector_into_batches_folds_to_the_same_message(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(VECTORS))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(vector["chunks"]) - 1)), max_size=12))
    assert_same(vector, in_batches(vector, cuts), f"cut at {cuts}")


def test_every_vector_without_what_has_no_effect_folds_to_the_same_message() -> None:
    dropped = 0
    for vector in VECTORS:
        kept = [chunk for chunk in vector["chunks"] if not has_no_effect(vector["format"], chunk)]
        dropped += len(vector["chunks"]) - len(kept)
        difference = first_difference(told(vector, vector["chunks"])[0], told(vector, kept)[0])
        assert difference is None, f"{name_of(vector)}: {difference}"
    assert dropped > 0, "there was something to drop"


DELTA = {"type": "text-delta", "id": "1", "delta": "x"}


@pytest.mark.parametrize(
    ("format_name", "chunks", "joined"),
    [
        ("ai-sdk-ui-message-stream", [DELTA, DELTA], [{**DELTA, "delta": "xx"}]),
        ("ai-sdk-ui-message-stream", [DELTA, {**DELTA, "id": "2"}], [DELTA, {**DELTA, "id": "2"}]),
        ("ai-sdk-ui-message-stream", [DELTA, {**DELTA, "providerMetadata": {}}], None),
        ("ai-sdk-ui-message-stream", [DELTA, {"type": "text-end", "id": "1"}, DELTA], None),
        ("ai-sdk-ui-message-stream", [DELTA, {**DELTA, "delta": ""}], None),
        ("ai-sdk-ui-message-stream", [DELTA, {**DELTA, "delta": "\ud83d"}], None),
        ("text", ["null", "é"], ["nullé"]),
        ("text", [{"text": "a"}, "b"], None),
        ("of-tomorrow", [DELTA, DELTA], None),
        (
            "openai-responses",
            [
                {"type": "response.refusal.delta", "item_id": "i", "output_index": 0, "content_index": 0, **more}
                for more in ({"delta": "a", "sequence_number": 9}, {"delta": "b", "sequence_number": 10})
            ],
            [
                {
                    "type": "response.refusal.delta",
                    "item_id": "i",
                    "output_index": 0,
                    "content_index": 0,
                    "delta": "ab",
                    "sequence_number": 10,
                }
            ],
        ),
    ],
)
def test_only_deltas_that_are_alike_are_joined(format_name: str, chunks: list[Any], joined: list[Any] | None) -> None:
    assert list(coalesced(format_name, chunks)) == (chunks if joined is None else joined)


@given(texts=st.lists(st.text(min_size=1), min_size=2, max_size=8))
@settings(deadline=None)
def test_a_run_takes_no_more_bytes_than_it_says(texts: list[str]) -> None:
    coalescer = Coalescer("text")
    deltas = [coalescer.delta(text, encode_chunk(text)) for text in texts]
    run: Run | None = None
    for delta in deltas:
        assert delta is not None
        if run is None:
            run = Run(delta)
        else:
            cost = run.cost(delta)
            assert cost is not None
            run.add(delta, cost)
    assert run is not None
    assert len(run.encoded()) <= run.bytes
    assert json.loads(run.encoded()) == "".join(texts)
