"""The checker finds what it is there for: each of these histories is right but for one thing."""

from collections.abc import Callable

import pytest

from tests.faults.checker import violations
from tests.faults.history import Closing, History, Log, Told, View, Write

LIFE = 0xA
OTHER_LIFE = 0xB
PATH = "json"


def offset(position: int, incarnation: int = LIFE) -> str:
    return f"{position:016x}_{incarnation:016x}"


def acked(history: History, texts: str, seq: int, at: int, *, epoch: int = 0, producer: str = "p") -> Write:
    """A batch that was acknowledged; each letter is a record."""
    write = history.write(PATH, texts, producer, epoch, seq)
    write.told.append(Told.ACKED)
    write.offsets.add(offset(at))
    return write


def good_history() -> History:
    """Two batches of one producer, one of another, and a reader that dropped and resumed."""
    history = History()
    acked(history, "ab", 0, 2)
    acked(history, "c", 0, 3, producer="q")
    acked(history, "d", 1, 4)
    history.logs.append(Log(PATH, LIFE, list("abcd")))
    history.views.append(View("reader", PATH, LIFE, 0, list("abcd")))
    return history


def found(history: History) -> str:
    return "\n".join(violations(history))


def test_history_without_a_fault_has_no_violation() -> None:
    assert violations(good_history()) == []


def with_log(content: str, *, closed: bool = False) -> Callable[[History], None]:
    def spoil(history: History) -> None:
        history.logs[0] = Log(PATH, LIFE, list(content), closed)
        history.views.clear()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (with_log("abd"), "batch q/0/0 of json (c) was acknowledged at 3 and is lost"),
        (with_log("abc"), "batch p/0/1 of json (d) was acknowledged at 4 and is lost"),
        (with_log("abcdd"), "d is there 2 times"),
        (with_log("abcdab"), "a is there 2 times"),
        (with_log("abdc"), "batch p/0/1 of json (d) was acknowledged at 4 and is at 3"),
        (with_log("dabc"), "p in ('json', 10): epoch 0 has seq 1 where 0 belongs"),
        (with_log("acbd"), "batch p/0/0 of json (a) is torn apart"),
        (with_log("acd"), "batch p/0/0 of json (a) is there in part"),
        (with_log("abcdx"), "nobody wrote 'x'"),
    ],
    ids=["lost", "lost_at_the_end", "doubled", "batch_doubled", "swapped", "reordered", "torn", "in_part", "unknown"],
)
def test_log_with_one_fault_is_found_out(spoil: Callable[[History], None], expected: str) -> None:
    history = good_history()
    spoil(history)
    assert expected in found(history)


@pytest.mark.parametrize(
    ("content", "start", "expected"),
    [
        ("abd", 0, "reader saw ['d'] at 2 of json, where the log has ['c']"),
        ("abbcd", 0, "reader saw ['b'] at 2 of json, where the log has ['c']"),
        ("abcde", 0, "reader saw ['e'] at 4 of json, where the log has []"),
        ("bd", 1, "reader saw ['d'] at 2 of json, where the log has ['c']"),
    ],
    ids=["skipped", "repeated", "saw_more", "skipped_from_the_middle"],
)
def test_reader_that_saw_something_else_is_found_out(content: str, start: int, expected: str) -> None:
    history = good_history()
    history.views[0] = View("reader", PATH, LIFE, start, list(content))
    assert expected in found(history)


def test_readers_of_a_deleted_life_must_agree_with_each_other() -> None:
    history = good_history()
    history.logs.clear()
    history.views.append(View("other", PATH, LIFE, 0, list("abd")))
    assert "other saw ['d'] at 2" in found(history)


def test_refused_batch_in_the_log_is_found_out() -> None:
    history = good_history()
    history.write(PATH, "x", "p", 0, 2).told.append(Told.REFUSED)
    with_log("abcdx")(history)
    assert "batch p/0/2 of json (x) was refused and is visible" in found(history)


def test_refused_batch_that_only_a_reader_ever_saw_is_found_out() -> None:
    history = good_history()
    history.write(PATH, "x", "p", 0, 2).told.append(Told.REFUSED)
    history.views[0].content.append("x")
    assert "batch p/0/2 of json (x) was refused and is visible" in found(history)


def test_batch_that_overtook_and_was_never_accepted_must_not_be_visible() -> None:
    history = good_history()
    history.write(PATH, "x", "p", 0, 2).told.append(Told.NOT_YET)
    with_log("abcdx")(history)
    assert "was refused and is visible" in found(history)


def test_forbidden_batch_must_not_be_visible_even_if_its_answer_was_lost() -> None:
    history = good_history()
    history.forbidden(PATH, "x").told.append(Told.UNKNOWN)
    with_log("abcdx")(history)
    assert "was refused and is visible" in found(history)


def test_batch_proved_absent_must_not_be_visible_even_if_an_answer_was_lost() -> None:
    history = good_history()
    write = history.write(PATH, "x", "p", 0, 2)
    write.told += [Told.UNKNOWN, Told.REFUSED]
    write.absent = True
    with_log("abcdx")(history)
    assert "was refused and is visible" in found(history)


def test_batch_of_unknown_fate_may_be_there_or_not() -> None:
    for content in ("abcd", "abcdx"):
        history = good_history()
        history.write(PATH, "x", "p", 0, 2).told += [Told.UNKNOWN, Told.REFUSED]
        with_log(content)(history)
        assert violations(history) == []


def test_batch_of_unknown_fate_that_is_there_twice_is_found_out() -> None:
    history = good_history()
    history.write(PATH, "x").told.append(Told.UNKNOWN)
    with_log("abcdxx")(history)
    assert "x is there 2 times" in found(history)


def test_hole_in_a_producers_batches_is_found_out_though_nothing_acked_is_lost() -> None:
    history = good_history()
    history.write(PATH, "x", "p", 0, 2).told.append(Told.UNKNOWN)
    history.write(PATH, "y", "p", 0, 3).told.append(Told.UNKNOWN)
    with_log("abcdy")(history)
    assert "epoch 0 has seq 3 where 2 belongs" in found(history)


def test_old_epoch_that_wrote_after_a_new_one_is_found_out() -> None:
    history = good_history()
    acked(history, "e", 0, 5, epoch=1)
    history.write(PATH, "x", "p", 0, 2).told.append(Told.UNKNOWN)
    with_log("abcdex")(history)
    assert "epoch 0 wrote after epoch 1" in found(history)


def test_new_epoch_after_an_old_one_is_right() -> None:
    history = good_history()
    acked(history, "e", 0, 5, epoch=1)
    with_log("abcde")(history)
    assert violations(history) == []


def test_duplicate_told_another_offset_is_found_out() -> None:
    history = good_history()
    history.writes[0].offsets.add(offset(4))
    assert "was told several offsets" in found(history)


def test_offset_of_another_life_is_found_out() -> None:
    history = good_history()
    history.writes[0].offsets = {offset(2, OTHER_LIFE)}
    history.logs.append(Log(PATH, OTHER_LIFE, list("xy")))
    assert "batch p/0/0 of json (a) was acknowledged at 2 and is at 2 of ('json', 10)" in found(history)


def closed_at(position: int) -> Closing:
    return Closing(PATH, offset(position))


def test_record_after_the_end_is_found_out() -> None:
    history = good_history()
    history.closings.append(closed_at(3))
    with_log("abcd", closed=True)(history)
    assert "json was closed at 3 and goes on to 4" in found(history)


def test_closed_stream_that_is_open_again_is_found_out() -> None:
    history = good_history()
    history.closings.append(closed_at(4))
    assert "json was closed at 4 and is open" in found(history)


def test_end_told_to_a_reader_too_early_is_found_out() -> None:
    history = good_history()
    history.views[0] = View("reader", PATH, LIFE, 0, list("abc"), ended=3)
    with_views = list(history.views)
    with_log("abcd", closed=True)(history)
    history.views += with_views
    assert "reader was told that json ends at 3; it ends at 4" in found(history)


def test_text_of_a_deleted_life_in_the_next_one_is_found_out() -> None:
    history = good_history()
    for write in history.writes:
        write.life = "first"
    history.write(PATH, "x", life="second").told.append(Told.ACKED)
    history.logs.append(Log(PATH, OTHER_LIFE, list("xd")))
    assert "life first of json is in several incarnations: [10, 11]" in found(history)


def test_two_lives_under_one_incarnation_are_found_out() -> None:
    history = good_history()
    for write in history.writes[:2]:
        write.life = "first"
    history.writes[2].life = "second"
    assert "['first', 'second'] of json share one incarnation" in found(history)


def test_bytes_are_found_by_line_and_counted_by_byte() -> None:
    history = History(byte_paths={PATH})
    write = history.write(PATH, ["one\n", "two\n"], "p")
    write.told.append(Told.ACKED)
    write.offsets.add(offset(8))
    history.logs.append(Log(PATH, LIFE, list("one\ntwo\n")))
    history.views.append(View("reader", PATH, LIFE, 0, list("one\ntw")))
    assert violations(history) == []
    history.logs[0] = Log(PATH, LIFE, list("one\ntw"))
    assert "is there in part" in found(history)


def test_what_was_wrong_at_once_is_told_with_the_rest() -> None:
    history = good_history()
    history.complain("answered 500")
    assert violations(history) == ["at once: answered 500"]
