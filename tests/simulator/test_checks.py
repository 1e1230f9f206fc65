"""tests/simulator/checks.py: each check finds the fault that it is for, in a small history that is made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from broker.core import apply as core
from broker.core.entry import Entry, Kind, encode
from broker.core.outcome import Outcome, Result
from broker.core.page import Page, json_page
from broker.core.state import Changes, stream_key
from broker.journal.cluster_record import Envelope, encode as encode_record
from broker.store import Head
from consumer.wire import Code
from tests.broker.core import entries
from tests.simulator import replay, world
from tests.simulator.checks import check
from tests.simulator.clients import Clients, Page as Answer
from tests.simulator.disk import Tray
from tests.simulator.history import Claim, History, Life, Read, Write
from tests.simulator.log import Truth
from tests.simulator.loop import Loop
from tests.simulator.replay import Replay
from tests.simulator.world import World

A, CHILD, GONE = 0xA, 0xC, 0xD
LIFE = ("a", A)
WAKE_ID = f"w_{6:016x}"
LOG = (
    entries.create(path="a", nonce=A),
    entries.append(b'"~p.0~"', path="a", producer=("p", 1, 0)),
    entries.append(b'"~p.1~"', path="a", producer=("p", 1, 1)),
    entries.append(b'"~plain~"', path="a"),
    entries.fork_ref("child", CHILD, path="a"),
    entries.fork(path="child", child=CHILD, lineage=(("a", A, 3),), source_path="a"),
    entries.append(b'"~old~"', path="a", producer=("p", 0, 0)),
    entries.create(path="gone", nonce=GONE),
    entries.append(b'"~late~"', path="gone", incarnation=GONE + 1),
    entries.expire(path="gone"),
    entries.close(path="a"),
    entries.append(b'"~behind~"', path="a"),
    entries.subscribe(subscription="sub", wake_stream="wake", pattern="a", nonce=5),
    entries.link(("a", A, 0), subscription="sub", complete=True),
    entries.claim("worker1", ("a", A, 3), subscription="sub", nonce=6),
    entries.claim("worker2", ("a", A, 3), subscription="sub"),
    entries.ack(1, WAKE_ID, ("a", A, 2), subscription="sub"),
    entries.ack(1, WAKE_ID, ("a", A, 1), subscription="sub"),
    entries.ack(1, "of nobody", subscription="sub"),
)
"""All of it in the first partition: what is refused, and what a wrong `apply` would do instead, too."""


class Scene:
    """One node made this log its own, faithfully, and clients wrote and read."""

    def __init__(self) -> None:
        self.history = History(lambda *_: None)
        self.truth = Truth(Loop(), Random(0), lambda *_: None)  # type: ignore[abstract]  # as in `world`
        for number, entry in enumerate(LOG):
            self.truth.put(encode_record(Envelope(1, number + 1, (encode(entry),))), "by hand")
        self.replay = Replay(self.history, 0, self.truth.records)
        self.disk = Tray()
        self.disk.is_there, self.disk.stands = True, Head(self.replay.index)
        self.disk.rows = {key: row for key, row in self.replay.rows.items() if row is not None}
        for accepted in self.replay.accepted:
            self.history.show("n0", accepted.life, accepted.start, accepted.records)
            page = json_page(accepted.records)
            placed = Page(accepted.start, accepted.start + 1, page.lengths, page.data)
            self.disk.pages.setdefault(accepted.life[1], []).append(placed)
        for index, told in self.replay.outcomes.items():
            self.history.apply("n0", (0, index), told)
        self.history.crashes.append(("n0", (0, self.replay.index), self.disk.dump()))
        for seq in (0, 1):
            self.write(Write(f"~p.{seq}~", "a", producer=("p", 1, seq), sent=1, acked=[(A, seq + 1)]))
        self.write(Write("~plain~", "a", group="g", sent=1, acked=[(A, 3)]))
        self.write(Write("~old~", "a", producer=("p", 0, 0), sent=1, denied=1))
        self.history.forks.append((("child", CHILD), LIFE, 3))
        self.history.reads.append(Read("n0", LIFE, 0, [*self.replay.content[LIFE]]))
        self.history.tails["r", LIFE] = [*self.replay.content[LIFE]]
        self.history.read_end("n0", LIFE, 3)

    def write(self, write: Write) -> None:
        self.history.writes[write.tag] = write

    @property
    def records(self) -> dict[int, bytes]:
        return self.history.shown[LIFE]

    def violated(self) -> set[str]:
        """The invariants that do not hold."""
        check(self.history, [self.truth.branches], [("n0", 0, self.disk)])
        return {violation.partition(":")[0] for violation in self.history.violations}


def test_history_without_a_fault_is_clean() -> None:
    assert Scene().violated() == set()


@pytest.mark.parametrize("has_lost", [True, False])
def test_promises_of_what_the_log_has_lost_are_void_and_of_nothing_else(has_lost: bool) -> None:  # noqa: FBT001 -- pytest
    scene = Scene()
    life = ("child", CHILD)
    scene.write(Write("~lost~", "child", sent=1, acked=[(CHILD, 4)]))
    scene.history.show("n1", life, 3, [b'"~lost~"'])
    scene.history.reads.append(Read("n1", life, 3, [b'"~lost~"']))
    if has_lost:
        entry = entries.append(b'"~lost~"', path="child")
        scene.truth.put(encode_record(Envelope(2, 1, (encode(entry),))), "by hand")
        scene.truth.lose(scene.truth.end - 1)
    assert scene.violated() == (set() if has_lost else {"KI5", "KI16"})


# -- what a history can have -----------------------------------------------------------------------------------------


def acknowledged_write_is_not_there(scene: Scene) -> None:
    scene.history.writes["~plain~"].acked = [(A, 9)]


def life_is_gone_though_nobody_ended_it(scene: Scene) -> None:
    scene.history.writes["~plain~"].acked = [(A + 1, 3)]


def write_is_there_twice(scene: Scene) -> None:
    scene.records[3] = scene.records[0]


def plain_write_is_there_more_often_than_it_was_sent(scene: Scene) -> None:
    scene.records[3] = scene.records[2]


def refused_write_is_visible(scene: Scene) -> None:
    scene.history.writes["~p.1~"].denied = 1


def seqs_are_visible_in_another_order(scene: Scene) -> None:
    scene.records[0], scene.records[1] = scene.records[1], scene.records[0]


def answers_of_a_patient_client_are_in_another_order(scene: Scene) -> None:
    scene.write(Write("~plain2~", "a", group="g", sent=1, acked=[(A, 1)]))


def nodes_show_other_records(scene: Scene) -> None:
    scene.history.show("n1", LIFE, 1, [b'"other"'])


def read_tells_other_records(scene: Scene) -> None:
    scene.history.reads.append(Read("n1", LIFE, 1, [b'"other"']))


def reader_misses_a_record(scene: Scene) -> None:
    del scene.history.tails["r", LIFE][1]


def reader_sees_a_record_twice(scene: Scene) -> None:
    scene.history.tails["r", LIFE].insert(0, scene.records[0])


def two_workers_have_one_wake(scene: Scene) -> None:
    scene.history.claims += [Claim("sub", 1, 7, "worker1"), Claim("sub", 1, 7, "worker2")]


def closed_stream_ends_in_two_places(scene: Scene) -> None:
    scene.history.read_end("n1", LIFE, 2)


def replica_makes_something_else_of_an_entry(scene: Scene) -> None:
    scene.history.apply("n1", (0, 2), scene.history.outcomes[0, 3])


def all_replicas_make_something_else_of_an_entry(scene: Scene) -> None:
    scene.history.outcomes[0, 2] = scene.history.outcomes[0, 3]


def replica_has_another_chain(scene: Scene) -> None:
    scene.history.link("n0", (0, 2), b"one")
    scene.history.link("n1", (0, 2), b"another")


def store_lacks_a_row_in_the_end(scene: Scene) -> None:
    del scene.disk.rows[stream_key("a")]


def store_lacks_a_record_in_the_end(scene: Scene) -> None:
    del scene.disk.pages[A][1]


def store_ends_before_the_log(scene: Scene) -> None:
    scene.disk.stands = Head(scene.replay.index - 1)


def store_is_ahead_of_its_index_after_a_crash(scene: Scene) -> None:
    scene.history.crashes.append(("n0", (0, 2), scene.disk.dump()))


def fork_begins_with_something_else(scene: Scene) -> None:
    scene.history.forks.append((("child", CHILD), LIFE, 2))
    scene.history.forks.append((LIFE, ("gone", GONE), 2))


def what_was_visible_is_gone(scene: Scene) -> None:
    scene.history.show("n0", LIFE, 3, [b'"was there"'])


@pytest.mark.parametrize(
    ("invariant", "fault"),
    [
        ("KI1", acknowledged_write_is_not_there),
        ("KI1", life_is_gone_though_nobody_ended_it),
        ("KI2", write_is_there_twice),
        ("KI2", plain_write_is_there_more_often_than_it_was_sent),
        ("KI3", refused_write_is_visible),
        ("KI4", seqs_are_visible_in_another_order),
        ("KI4", answers_of_a_patient_client_are_in_another_order),
        ("KI5", nodes_show_other_records),
        ("KI5", read_tells_other_records),
        ("KI6", reader_misses_a_record),
        ("KI6", reader_sees_a_record_twice),
        ("KI8", two_workers_have_one_wake),
        ("KI9", closed_stream_ends_in_two_places),
        ("KI12", replica_makes_something_else_of_an_entry),
        ("KI12", all_replicas_make_something_else_of_an_entry),
        ("KI12", replica_has_another_chain),
        ("KI12", store_lacks_a_row_in_the_end),
        ("KI12", store_lacks_a_record_in_the_end),
        ("KI12", store_ends_before_the_log),
        ("KI13", store_is_ahead_of_its_index_after_a_crash),
        ("KI14", fork_begins_with_something_else),
        ("KI16", what_was_visible_is_gone),
    ],
)
def test_fault_in_a_history_violates_its_invariant(invariant: str, fault: Callable[[Scene], None]) -> None:
    scene = Scene()
    fault(scene)
    assert invariant in scene.violated()


# -- what a wrong `apply` would make of the log: nodes and replay agree, and the rule is broken all the same ---------

Wrong = Callable[[Entry, Outcome], tuple[str, int] | None]
"""The life that an entry is added to though it is refused."""


def old_epoch_is_accepted(_: Entry, outcome: Outcome) -> tuple[str, int] | None:
    return LIFE if outcome.code is Code.FENCED else None


def record_is_added_behind_a_close(_: Entry, outcome: Outcome) -> tuple[str, int] | None:
    return LIFE if outcome.code is Code.STREAM_CLOSED else None


def record_goes_to_another_life(entry: Entry, _: Outcome) -> tuple[str, int] | None:
    return ("gone", GONE) if entry.path == "gone" and entry.kind == Kind.APPEND else None


@pytest.mark.parametrize(
    ("invariant", "wrong"),
    [
        ("KI8", old_epoch_is_accepted),
        ("KI9", record_is_added_behind_a_close),
        ("KI10", record_goes_to_another_life),
    ],
)
def test_apply_that_adds_what_it_should_refuse_violates_an_invariant(invariant: str, wrong: Wrong) -> None:
    def apply(rows: Any, entry: Entry, index: int, now_ms: int) -> tuple[Outcome, Changes]:
        outcome, changes = core.apply(rows, entry, index, now_ms)
        life = wrong(entry, outcome)
        if life is not None:
            page = json_page([entry.body])
            changes = msgspec.structs.replace(changes, appended=[(*life, Page(3, 4, page.lengths, page.data))])
        return outcome, changes

    scene = Scene()
    with patch.object(replay, "apply", apply):
        assert invariant in scene.violated()


@pytest.mark.parametrize("code", [Code.ALREADY_CLAIMED, Code.FENCED, Code.INVALID_OFFSET])
def test_worker_that_is_given_what_it_should_be_refused_violates_ki8(code: Code) -> None:
    def apply(rows: Any, entry: Entry, index: int, now_ms: int) -> tuple[Outcome, Changes]:
        outcome, changes = core.apply(rows, entry, index, now_ms)
        known = outcome.subscription
        if known is None or outcome.code is not code:
            return outcome, changes
        if code is Code.INVALID_OFFSET:
            known = msgspec.structs.replace(known, links=(msgspec.structs.replace(known.links[0], acked=1),))
        return Outcome(Result.ACCEPTED, subscription=known), changes

    scene = Scene()
    with patch.object(replay, "apply", apply):
        assert "KI8" in scene.violated()


def test_stream_that_ends_before_its_time_violates_ki11() -> None:
    def apply(rows: Any, entry: Entry, index: int, now_ms: int) -> tuple[Outcome, Changes]:
        outcome, changes = core.apply(rows, entry, index, now_ms)
        return outcome, msgspec.structs.replace(changes, ended=[LIFE]) if entry.kind == Kind.EXPIRE else changes

    scene = Scene()
    with patch.object(replay, "apply", apply):
        assert "KI11" in scene.violated()


# -- what is seen while it happens -----------------------------------------------------------------------------------


async def test_acknowledged_write_that_a_read_does_not_find_violates_ki7() -> None:
    class Forgetful(Clients):
        async def read(self, life: Life, position: int) -> Answer | None:  # noqa: ARG002 -- it has nothing anywhere
            return Answer(life[1], [], is_end=False)

    history = History(lambda *_: None)
    clients = Forgetful([], history, Random(0), lambda *_: None)
    await clients.read_own(Write("~plain~", "a"), A, 3)
    assert [violation.partition(":")[0] for violation in history.violations] == ["KI7"]


def test_snapshots_that_do_not_have_what_the_log_forgets_violate_ki15(tmp_path: Path) -> None:
    made = World(0, Loop(), tmp_path)  # type: ignore[abstract]  # as in `world`
    made.logs[0].truth.put(b"", "by hand")
    made.logs[0].truth.trim(1)
    assert [violation.partition(":")[0] for violation in made.history.violations] == ["KI15"]


def test_nodes_that_never_come_to_rest_violate_ki17() -> None:
    async def never(_: World) -> bool:
        return False

    with patch.object(World, "_all_agree", never):
        assert any(violation.startswith("KI17") for violation in world.run(0).violations)
