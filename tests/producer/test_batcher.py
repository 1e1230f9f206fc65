import json

from hypothesis import given, strategies as st

from producer.batcher import Batch, Batcher
from producer.limits import Limits

FINISH = Batch(b"{}", chunks=0, content_bytes=0, last=True)
SMALL = Limits(linger_ms=10, batch_bytes_max=64, batch_chunks_max=4)


def past_the_first(limits: Limits = SMALL) -> Batcher:
    """A batcher whose first chunk, which never waits, has left."""
    batcher = Batcher(limits)
    batcher.add(b"0", now_s=0.0)
    batcher.take()
    return batcher


def test_nothing_written_leaves_nothing_to_wait_for() -> None:
    assert Batcher(SMALL).wait_s(0.0) is None


def test_first_chunk_is_due_at_once() -> None:
    batcher = Batcher(SMALL)
    batcher.add(b"1", now_s=5.0)
    assert batcher.wait_s(5.0) == 0.0


def test_later_chunk_waits_for_its_linger_and_no_longer() -> None:
    batcher = past_the_first()
    batcher.add(b"1", now_s=5.0)
    batcher.add(b"2", now_s=5.008)
    wait_s = batcher.wait_s(5.008)
    assert wait_s is not None
    assert abs(wait_s - 0.002) < 1e-9, "the oldest chunk counts"
    assert batcher.wait_s(5.011) == 0.0


def test_full_batch_is_due_before_its_linger() -> None:
    batcher = past_the_first()
    for chunk in (b"1", b"2", b"3", b"4"):
        assert batcher.wait_s(5.0) != 0.0
        batcher.add(chunk, now_s=5.0)
    assert batcher.wait_s(5.0) == 0.0
    assert batcher.take() == Batch(b"[1,2,3,4]", chunks=4, content_bytes=4)


def test_sealed_batch_is_due_before_its_linger() -> None:
    batcher = past_the_first()
    batcher.add(b"1", now_s=5.0)
    batcher.seal()
    assert batcher.wait_s(5.0) == 0.0


def test_chunk_above_the_batch_limit_travels_alone() -> None:
    batcher = past_the_first()
    large = json.dumps("x" * 100).encode()
    for chunk in (b"1", large, b"2"):
        batcher.add(chunk, now_s=5.0)
    batcher.seal()
    assert [batcher.take().body for _ in range(3)] == [b"[1]", b"[" + large + b"]", b"[2]"]


def test_finish_follows_everything_that_was_written() -> None:
    batcher = past_the_first()
    batcher.add(b"1", now_s=5.0)
    batcher.add_batch(FINISH)
    assert batcher.take() == Batch(b"[1]", chunks=1, content_bytes=1)
    assert batcher.take() == FINISH
    assert batcher.wait_s(5.0) is None


chunks = st.lists(st.text(max_size=30).map(lambda text: json.dumps(text).encode()), max_size=60)


@given(chunks, st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_batches_are_what_was_written_in_order_and_within_the_limits(
    written: list[bytes], taken_before: set[int], sealed_before: set[int]
) -> None:
    batcher = Batcher(SMALL)
    batches: list[Batch] = []
    for number, chunk in enumerate(written):
        if number in taken_before and batcher.wait_s(0.0) is not None:
            batches.append(batcher.take())
        if number in sealed_before:
            batcher.seal()
        batcher.add(chunk, now_s=0.0)
    assert batcher.chunks + sum(batch.chunks for batch in batches) == len(written)
    assert batcher.bytes + sum(batch.content_bytes for batch in batches) == sum(map(len, written))
    while batcher.wait_s(0.0) is not None:
        batches.append(batcher.take())
    assert [chunk for batch in batches for chunk in json.loads(batch.body)] == [json.loads(chunk) for chunk in written]
    assert (batcher.bytes, batcher.chunks) == (0, 0)
    assert all(batch.chunks <= 4 for batch in batches)
    assert all(len(batch.body) <= 64 or batch.chunks == 1 for batch in batches)
