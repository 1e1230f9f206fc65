"""The fold of a session, whatever its records are: in any order, in parts, seen again."""

from typing import Any

from hypothesis import given, settings, strategies as st

from consumer.plain import encode
from consumer.session import SessionFold
from tests.consumer.fold.chunks import format_and_chunks
from tests.consumer.folded import folded, reloaded
from tests.consumer.records import chunk, ended, opened, stop, whole

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
few_ids = st.sampled_from(["a", "b", "a:0"])
texts = st.text(st.characters(), max_size=3)
plausible_records = st.one_of(
    st.builds(opened, few_ids, few_ids, chunk_format=st.sampled_from(["text", "ai-sdk-ui-message-stream", "?"])),
    st.builds(opened, few_ids, few_ids, continues=few_ids),
    st.builds(ended, few_ids, few_ids, st.sampled_from(["complete", "failed", "aborted", "streaming"])),
    st.builds(chunk, few_ids, st.integers(0, 4), few_ids, texts | json_values),
    st.builds(whole, few_ids, st.sampled_from(["insert", "upsert"]), text=texts),
    st.builds(stop, few_ids, few_ids),
    st.builds(lambda kind, rest: {"type": kind, **rest}, st.sampled_from(["chunk", "message"]), st.just({}))
    | json_values,
)
logs = st.lists(plausible_records, max_size=30)


@given(logs, st.data())
def test_stopping_anywhere_and_going_on_equals_folding_all(log: list[Any], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    first = reloaded(folded(log[:cut]))
    for record in log[cut:]:
        first.add(record)

    assert first.items() == folded(log).items()


@given(logs)
def test_text_and_data_fold_alike(log: list[Any]) -> None:
    as_data, as_text = SessionFold(), SessionFold()
    for record in log:
        assert as_data.add(record) == as_text.add(encode(record))
    assert as_data.malformed == as_text.malformed
    assert encode([*as_data.items()]) == encode([*as_text.items()])


@given(st.lists(plausible_records | st.binary(), max_size=30))
def test_nothing_that_comes_makes_it_raise(log: list[Any]) -> None:
    folding = folded(log)

    assert len({item["id"] for item in folding.items()}) == len(folding.items())


@settings(max_examples=100)
@given(format_and_chunks(12), st.data())
def test_in_every_format_records_seen_again_and_a_snapshot_in_between_change_nothing(
    given_: tuple[str, list[Any]], data: st.DataObject
) -> None:
    name, chunks = given_
    log = [opened("g", "m", chunk_format=name)]
    log += [chunk("g", number, "m", content) for number, content in enumerate(chunks)]
    log += [ended("g", "m", data.draw(st.sampled_from(["complete", "failed"])), chunk_format=name)]
    cut = data.draw(st.integers(0, len(log)))

    folding = reloaded(folded(log[:cut]))
    for number in range(len(log)):
        folding.add(log[number])
        folding.add(log[data.draw(st.integers(0, number))])

    assert encode([*folding.items()]) == encode([*folded(log).items()])
