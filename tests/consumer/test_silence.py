"""Which answers are quiet, told record by record and second by second."""

import math

from consumer.silence import Silence
from tests.consumer.records import chunk, ended, opened, whole

QUIET_S = 30.0


def test_a_session_without_a_running_answer_is_idle() -> None:
    silence = Silence(QUIET_S)
    silence.hear("u", whole("u"), 0.0)

    assert (silence.status, silence.next_s()) == ("idle", math.inf)
    assert silence.fall(1e9) == []


def test_an_answer_is_pending_until_its_first_chunk_and_idle_after_its_end() -> None:
    silence = Silence(QUIET_S)
    seen = []
    for record in (opened("g", "a"), chunk("g", 0, "a", "text"), ended("g", "a")):
        silence.hear("a", record, 0.0)
        seen.append(silence.status)

    assert seen == ["pending", "streaming", "idle"]


def test_an_answer_stalls_when_nothing_came_for_too_long_and_no_sooner() -> None:
    silence = Silence(QUIET_S)
    silence.hear("a", opened("g", "a"), 0.0)
    silence.hear("a", chunk("g", 0, "a", "text"), 10.0)

    assert silence.next_s() == 40.0
    assert silence.fall(39.9) == []
    assert silence.fall(40.0) == ["a"]
    assert (silence.status, "a" in silence) == ("stalled", True)
    assert (silence.fall(50.0), silence.next_s()) == ([], math.inf)


def test_a_chunk_ends_the_silence() -> None:
    silence = Silence(QUIET_S)
    silence.hear("a", opened("g", "a"), 0.0)
    silence.fall(30.0)
    silence.hear("a", chunk("g", 0, "a", "text"), 31.0)

    assert (silence.status, "a" in silence, silence.next_s()) == ("streaming", False, 61.0)


def test_the_end_ends_the_silence_as_well() -> None:
    silence = Silence(QUIET_S)
    silence.hear("a", opened("g", "a"), 0.0)
    silence.fall(30.0)
    silence.hear("a", ended("g", "a", "failed"), 31.0)

    assert (silence.status, "a" in silence) == ("idle", False)


def test_one_answer_that_is_written_keeps_the_session_from_being_stalled() -> None:
    silence = Silence(QUIET_S)
    silence.hear("a", opened("g", "a"), 0.0)
    silence.hear("b", chunk("h", 0, "b", "text"), 20.0)

    assert silence.fall(30.0) == ["a"]
    assert silence.status == "streaming"


def test_what_came_while_nobody_listened_is_not_held_against_an_answer() -> None:
    silence = Silence(QUIET_S)
    silence.hear("a", chunk("g", 0, "a", "text"), 0.0)
    silence.fall(30.0)
    silence.listen(100.0)

    assert (silence.status, silence.next_s()) == ("streaming", 130.0)
