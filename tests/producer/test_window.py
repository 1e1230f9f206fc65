"""The window against an honest broker over the worst of networks: nothing is lost, doubled or reordered."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from producer.batcher import Batch
from producer.window import Flight, State, Window

IN_FLIGHT_MAX = 4


def batch(number: int) -> Batch:
    return Batch(f"[{number}]".encode(), chunks=1, content_bytes=len(str(number)))


def opened(in_flight_max: int = IN_FLIGHT_MAX) -> Window[int]:
    """A window whose first batch is acknowledged."""
    window: Window[int] = Window(next_seq=0, in_flight_max=in_flight_max)
    first = window.admit(batch(0))
    window.send(first)
    window.acknowledge(first, 0)
    return window


def states(*flights: Flight) -> list[State]:
    return [flight.state for flight in flights]


def test_nothing_follows_the_first_batch_before_it_is_acknowledged() -> None:
    window: Window[int] = Window(next_seq=0, in_flight_max=IN_FLIGHT_MAX)
    first = window.admit(batch(0))
    window.send(first)
    assert not window.has_room
    window.acknowledge(first, 0)
    assert window.has_room


def test_window_is_full_at_its_limit() -> None:
    window = opened()
    flights = [window.admit(batch(n)) for n in range(1, 5)]
    assert [flight.seq for flight in flights] == [1, 2, 3, 4]
    assert not window.has_room


def test_failed_batch_waits_until_everything_before_it_is_acknowledged() -> None:
    window = opened()
    one, two = window.admit(batch(1)), window.admit(batch(2))
    window.send(one)
    window.send(two)
    window.retry(two)
    assert states(two) == [State.HELD]
    window.acknowledge(one, 1)
    assert states(two) == [State.READY]


def test_nothing_new_is_admitted_while_a_batch_waits_to_be_sent_again() -> None:
    window = opened()
    one, two = window.admit(batch(1)), window.admit(batch(2))
    window.send(one)
    window.send(two)
    window.retry(two)
    assert not window.has_room
    window.acknowledge(one, 1)
    assert window.has_room


def test_failed_head_may_be_sent_again_at_once() -> None:
    window = opened()
    one = window.admit(batch(1))
    window.send(one)
    window.retry(one)
    assert states(one) == [State.READY]


def test_refusal_of_the_head_is_final() -> None:
    window = opened()
    one = window.admit(batch(1))
    window.send(one)
    assert not window.retry_as_head(one)


def test_refusal_of_a_batch_that_became_the_head_meanwhile_is_not_believed() -> None:
    """Batch 2 overtook batch 1 and met a gap; the answer to batch 1 came first."""
    window = opened()
    one, two = window.admit(batch(1)), window.admit(batch(2))
    window.send(one)
    window.send(two)
    window.acknowledge(one, 1)
    assert window.retry_as_head(two)
    assert states(two) == [State.READY]
    window.send(two)
    assert not window.retry_as_head(two)


def test_receipt_is_of_the_newest_batch_with_everything_before_it_acknowledged() -> None:
    window = opened()
    one, two = window.admit(batch(1)), window.admit(batch(2))
    window.send(one)
    window.send(two)
    window.acknowledge(two, 2)
    assert (window.acked_seq, window.receipt, window.chunks_acked) == (0, 0, 1)
    window.acknowledge(one, 1)
    assert (window.acked_seq, window.receipt, window.chunks_acked) == (2, 2, 3)


@dataclass
class Broker:
    """The rule of the seq, and nothing else."""

    log: list[bytes] = field(default_factory=list)

    def append(self, seq: int, body: bytes) -> str:
        if seq < len(self.log):
            return "duplicate" if self.log[seq] == body else "mismatch"
        if seq > len(self.log):
            return "gap"
        self.log.append(body)
        return "accepted"


@dataclass(eq=False)
class Journey:
    """One request and its answer, somewhere in the network."""

    flight: Flight
    answer: str | None = None
    given_up: bool = False


class WorstOfNetworks(RuleBasedStateMachine):
    """Requests arrive in any order and late, are lost, and arrive after they were given up; so do answers."""

    def __init__(self) -> None:
        super().__init__()
        self.window: Window[int] = Window(next_seq=0, in_flight_max=IN_FLIGHT_MAX)
        self.broker = Broker()
        self.written = 0
        self.waiting: list[Flight] = []
        self.travelling: list[Journey] = []

    @precondition(lambda self: self.window.has_room)
    @rule()
    def write(self) -> None:
        self.waiting.append(self.window.admit(batch(self.written)))
        self.written += 1

    @precondition(lambda self: self.ready())
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(self.ready())))

    @precondition(lambda self: self.travelling)
    @rule(data=st.data())
    def request_arrives(self, data: st.DataObject) -> None:
        self.arrive(data.draw(st.sampled_from(self.travelling)))

    @precondition(lambda self: self.travelling)
    @rule(data=st.data())
    def connection_is_lost(self, data: st.DataObject) -> None:
        """Before or after the request arrived; if before, it may arrive yet."""
        journey = data.draw(st.sampled_from(self.travelling))
        if not journey.given_up:
            journey.given_up = True
            self.window.retry(journey.flight)
            self.waiting.append(journey.flight)

    @precondition(lambda self: any(journey.answer for journey in self.travelling))
    @rule(data=st.data())
    def answer_arrives(self, data: st.DataObject) -> None:
        self.hear(data.draw(st.sampled_from([journey for journey in self.travelling if journey.answer])))

    @rule()
    def calm(self) -> None:
        """The network behaves for as long as it takes: everything arrives."""
        for _ in range(20 * IN_FLIGHT_MAX):
            for flight in self.ready():
                self.leave(flight)
            for journey in list(self.travelling):
                self.arrive(journey)
                self.hear(journey)
        assert len(self.window) == 0
        assert self.broker.log == [batch(number).body for number in range(self.written)]
        assert self.window.acked_seq == self.written - 1

    @invariant()
    def log_is_what_was_written(self) -> None:
        assert self.broker.log == [batch(number).body for number in range(len(self.broker.log))]

    @invariant()
    def what_is_acknowledged_is_in_the_log(self) -> None:
        assert self.window.acked_seq < len(self.broker.log)
        assert self.window.chunks_acked == self.window.acked_seq + 1

    @invariant()
    def window_keeps_its_bound(self) -> None:
        assert len(self.window) <= IN_FLIGHT_MAX

    @invariant()
    def something_can_always_go_on(self) -> None:
        assert not self.waiting or self.ready() or any(not journey.given_up for journey in self.travelling)

    def ready(self) -> list[Flight]:
        return [flight for flight in self.waiting if flight.state is State.READY]

    def leave(self, flight: Flight) -> None:
        self.waiting.remove(flight)
        self.window.send(flight)
        self.travelling.append(Journey(flight))

    def arrive(self, journey: Journey) -> None:
        if journey.answer is None:
            journey.answer = self.broker.append(journey.flight.seq, journey.flight.batch.body)

    def hear(self, journey: Journey) -> None:
        self.travelling.remove(journey)
        if journey.given_up:
            return
        if journey.answer == "gap":
            assert self.window.retry_as_head(journey.flight), "an honest broker was blamed for a loss"
            self.waiting.append(journey.flight)
        else:
            assert journey.answer in {"accepted", "duplicate"}
            self.window.acknowledge(journey.flight, journey.flight.seq)


TestWorstOfNetworks = WorstOfNetworks.TestCase
TestWorstOfNetworks.settings = settings(max_examples=60, stateful_step_count=60)


def test_gap_after_an_acknowledged_batch_was_lost_is_final() -> None:
    """The broker forgot what it had acknowledged: the one thing that the window cannot heal."""
    window = opened()
    one = window.admit(batch(1))
    window.send(one)
    assert Broker().append(one.seq, one.batch.body) == "gap"
    assert not window.retry_as_head(one)


@pytest.mark.parametrize("next_seq", [0, 1, 57])
def test_window_goes_on_where_an_earlier_process_stopped(next_seq: int) -> None:
    window: Window[int] = Window(next_seq=next_seq, in_flight_max=IN_FLIGHT_MAX)
    flight = window.admit(batch(0))
    assert flight.seq == next_seq
    window.send(flight)
    window.acknowledge(flight, next_seq)
    assert (window.acked_seq, window.chunks_acked) == (next_seq, 1)
