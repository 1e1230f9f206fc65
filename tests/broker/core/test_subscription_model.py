"""broker/core/subscription.py: the rules of a pull-wake subscription beside a dumb model of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.entry import Place
from broker.core.outcome import Outcome
from consumer.wire import Code
from tests.broker.core.entries import SUBSCRIPTION, ack, attempt, claim, subscribe
from tests.broker.core.replica import Replica
from tests.broker.core.subscribed import A, B, at, wake


@dataclass
class Model:
    """A pull-wake subscription to two streams, in plain words."""

    tails: dict[str, int] = field(default_factory=lambda: {A: 0, B: 0})
    acked: dict[str, int] = field(default_factory=lambda: {A: 0, B: 0})
    generation: int = 0
    state: str = "idle"  # idle, waking, told, held
    holder: str = ""

    @property
    def pending(self) -> bool:
        return any(self.tails[path] > self.acked[path] for path in self.tails)


class Machine(RuleBasedStateMachine):
    """The real rules and the model take the same steps."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Replica()
        self.model = Model()
        self.replica.do(subscribe(at(0), at(0, B), wake_stream="wake"))
        self.old: list[tuple[int, str]] = []  # wakes that are over

    @property
    def tails(self) -> tuple[Place, ...]:
        return tuple(at(tail, path) for path, tail in self.model.tails.items())

    def current(self) -> tuple[int, str]:
        return (self.model.generation, wake(self.replica).wake_id)

    @rule(path=st.sampled_from([A, B]))
    def append(self, path: str) -> None:
        self.model.tails[path] += 1

    @rule()
    def wake_up(self) -> None:
        outcome = self.replica.do(attempt(self.model.generation + 1, 0, *self.tails))
        expected = self.model.state == "idle" and self.model.pending
        assert outcome.changed == expected
        if expected:
            self.model.generation += 1
            self.model.state = "waking"

    @rule(after_ms=st.sampled_from([0, 999, 1_000]))
    def try_again(self, after_ms: int) -> None:
        number = wake(self.replica).attempt + 1 if self.model.state != "idle" else 1
        outcome = self.replica.do(attempt(self.model.generation, number), after_ms=after_ms)
        assert not outcome.changed or self.model.state == "waking"

    @precondition(lambda self: self.model.state == "waking")
    @rule()
    def deliver(self) -> None:
        assert self.replica.do(ack(*self.current(), delivered=True)).changed
        self.model.state = "told"

    @rule(worker=st.sampled_from(["me", "you"]))
    def claim(self, worker: str) -> None:
        model, outcome = self.model, self.replica.do(claim(worker, *self.tails))
        if model.state == "held":
            assert outcome.code is Code.ALREADY_CLAIMED
        elif model.state == "idle" and not model.pending:
            assert outcome.code is Code.NO_PENDING_WORK
        else:
            assert outcome.changed
            model.generation += model.state == "idle"
            model.state, model.holder = "held", worker

    @precondition(lambda self: self.model.state == "held")
    @rule(path=st.sampled_from([A, B]), position=st.integers(0, 6), done=st.booleans())
    def report(self, path: str, position: int, *, done: bool) -> None:
        current = self.current()
        outcome = self.replica.do(ack(*current, at(position, path), done=done))
        if position < self.model.acked[path]:
            assert outcome.code is Code.INVALID_OFFSET
            return
        assert outcome.changed
        self.model.acked[path] = position
        if done:
            self.end(current)

    @precondition(lambda self: self.model.state != "idle")
    @rule()
    def expire(self) -> None:
        current, renewed_index = self.current(), wake(self.replica).renewed_index
        outcome = self.replica.do(ack(*current, expires=renewed_index))
        assert outcome.changed == (self.model.state == "held")
        if outcome.changed:
            self.end(current)

    @precondition(lambda self: self.old)
    @rule(data=st.data(), done=st.booleans())
    def report_late(self, data: st.DataObject, *, done: bool) -> None:
        outcome: Outcome = self.replica.do(ack(*data.draw(st.sampled_from(self.old)), at(6), done=done))
        assert outcome.code is Code.FENCED

    def end(self, current: tuple[int, str]) -> None:
        self.old.append(current)
        self.model.state, self.model.holder = "idle", ""

    @invariant()
    def agrees(self) -> None:
        subscription = self.replica.subscription(SUBSCRIPTION)
        assert subscription.generation == self.model.generation
        assert {known.path: known.acked for known in subscription.links} == self.model.acked
        assert (subscription.wake is None) == (self.model.state == "idle")
        assert (subscription.wake.holder if subscription.wake else "") == self.model.holder


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30)
