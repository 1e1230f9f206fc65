"""Which rows stay in memory."""

from collections.abc import Iterable

from broker.core.state import Generation, Key, Message, Row, Session, generation_key, message_key, session_key
from broker.rows import Rows

SESSION = session_key("sessions/s")


class Store:
    """Has what was stored; counts what it was asked for."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row | None] = {}
        self.asked: list[Key] = []

    async def load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        wanted = list(keys)
        self.asked += wanted
        return {key: self.rows.get(key) for key in wanted}


def answer(number: int) -> dict[Key, Row | None]:
    """What an answer that has ended leaves behind."""
    generation = Generation(1, 1, f"g{number}", f"m{number}", "main", number, "text", "assistant", "", 1000, 0, 0)
    message = Message(1, 1, 0, generation_id=f"g{number}")
    return {
        generation_key("sessions/s", f"g{number}"): generation,
        message_key("sessions/s", f"m{number}"): message,
        SESSION: Session(1, 0, number),
    }


def checkpoint(rows: Rows, store: Store) -> None:
    store.rows.update(rows.freeze())
    rows.stored()
    rows.evict(())


async def test_r6_however_many_answers_have_ended_few_of_their_rows_stay_in_memory() -> None:
    store = Store()
    rows = Rows(store.load, rows_max=1000, past_rows_max=20)
    for number in range(300):
        rows.install(answer(number))
        if number % 10 == 9:
            checkpoint(rows, store)
            assert len(rows.held) == 21
    assert SESSION in rows.held
    assert generation_key("sessions/s", "g299") in rows.held


async def test_r6_rows_of_old_answers_that_are_asked_for_do_not_pile_up_either() -> None:
    store = Store()
    rows = Rows(store.load, rows_max=1000, past_rows_max=20)
    for number in range(300):
        store.rows.update(answer(number))
    for number in range(300):
        key = generation_key("sessions/s", f"g{number}")
        assert await rows.get(key) == store.rows[key]
        assert len(rows.held) <= 23


async def test_what_is_known_to_be_missing_is_not_taken_for_over() -> None:
    """Every batch of a generation that runs needs to know that its own end is not there."""
    store = Store()
    rows = Rows(store.load, rows_max=1000, past_rows_max=20)
    running = generation_key("sessions/s", "running")
    assert await rows.get(running) is None
    for number in range(300):
        rows.install(answer(number))
        checkpoint(rows, store)
    assert await rows.get(running) is None
    assert store.asked == [running]


async def test_row_that_is_not_stored_yet_stays() -> None:
    rows = Rows(Store().load, rows_max=1000, past_rows_max=0)
    rows.install(answer(1))
    rows.evict(())
    assert len(rows.held) == 3
    rows.freeze()
    rows.evict(())
    assert len(rows.held) == 3
    rows.stored()
    rows.evict(())
    assert list(rows.held) == [SESSION]
