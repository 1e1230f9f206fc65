"""What a caller of the library sees, against the model broker over real sockets."""

import inspect
from typing import Any

import pytest

import producer as package
from consumer import OffsetsFailed
from producer import AttemptFailed, ClientError, Limits, Producer, Refused, Unavailable
from tests.producer.model import Fault, ModelBroker, in_turn


async def test_created_session_and_its_first_message_exist(url: str, broker: ModelBroker) -> None:
    message = {"id": "m-1", "role": "user", "text": "hello"}
    async with Producer(url) as producer:
        first = await producer.create_session("new", message=message, metadata={"title": "t"})
        again = await producer.create_session("new", message=message, metadata={"title": "t"})
    assert (first.created, again.created) == (True, False)
    assert broker.sessions["new"].messages["m-1"][0] == message
    assert broker.sessions["new"].metadata == {"title": "t"}


async def test_message_sent_twice_is_stored_once(url: str, broker: ModelBroker) -> None:
    message = {"id": "m-1", "role": "user", "text": "hello \ud83d"}
    async with Producer(url) as producer:
        first = await producer.send_message("s", message, txid="t&1")
        again = await producer.send_message("s", message, txid="t&1")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.txid == "t&1"
    assert first.offset == again.offset
    assert broker.sessions["s"].records == 1


async def test_message_under_a_taken_id_is_refused(url: str) -> None:
    async with Producer(url) as producer:
        await producer.send_message("s", {"id": "m-1", "role": "user", "text": "one"})
        with pytest.raises(Refused) as caught:
            await producer.send_message("s", {"id": "m-1", "role": "user", "text": "two"})
    assert caught.value.code == "MESSAGE_EXISTS"


async def test_lost_answer_to_a_message_is_retried_and_doubles_nothing(
    url: str, broker: ModelBroker, limits: Limits
) -> None:
    broker.fault = in_turn(Fault.LOSE_ANSWER)
    async with Producer(url, limits=limits) as producer:
        receipt = await producer.send_message("s", {"id": "m-1", "role": "user"})
    assert receipt.duplicate
    assert broker.sessions["s"].records == 1


async def test_request_that_is_never_answered_is_given_up_at_the_deadline(url: str, broker: ModelBroker) -> None:
    broker.fault = lambda _: Fault.REFUSE
    async with Producer(url, limits=Limits(deadline_s=0.2, backoff_s_initial=0.01, backoff_s_jitter=0.01)) as producer:
        with pytest.raises(Unavailable) as caught:
            await producer.create_session("new")
    assert caught.value.retryable
    assert caught.value.status == 503
    assert isinstance(caught.value.__cause__, AttemptFailed)
    assert len(broker.requests) > 1, "it was tried again"


async def test_refused_request_is_not_tried_again(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer:
        with pytest.raises(Refused):
            await producer.send_message("nowhere", {"id": "m", "role": "user"})
    assert len(broker.requests) == 1


async def test_stop_ends_a_generation_whoever_writes_it(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as writer, Producer(url) as other, writer.generation("s", "g") as generation:
        await generation.write("kept")
        await generation.flush()
        stopped = await other.stop("s", "g", requested_by="user-1")
        assert (stopped.status, stopped.reason) == ("aborted", "stopped")
        with pytest.raises(package.Fenced):
            await generation.finish()
    assert broker.log("s", "g") == ["kept"]
    assert broker.requests[-2][2] == b'{"requestedBy":"user-1"}'


async def test_exception_in_the_body_leaves_the_producer_as_it_is(url: str) -> None:
    """Not wrapped into a group by the tasks that the producer owns."""
    with pytest.raises(KeyError):
        async with Producer(url):
            raise KeyError("mine")


async def test_producer_that_is_left_ends_what_is_open_and_keeps_what_was_written(
    url: str, broker: ModelBroker
) -> None:
    async with Producer(url) as producer:
        generation = await producer.generation("s", "g").__aenter__()
        await generation.write("kept")
    assert broker.log("s", "g") == ["kept"]
    assert broker.generation("s", "g").status == "aborted"


async def test_generation_outside_the_producer_is_a_clear_error(url: str) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Producer(url).generation("s", "g").__aenter__()


@pytest.mark.parametrize("bad", ["", "a/b", "..", ".", "x" * 129, "a b", "ä", "a?b", "a\n"])
async def test_id_that_cannot_be_one_is_a_value_error(url: str, bad: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer:
        with pytest.raises(ValueError, match="session_id must be 1 to 128 characters"):
            producer.generation(bad, "g")
        with pytest.raises(ValueError, match="generation_id must be 1 to 128 characters"):
            producer.generation("s", bad)
        with pytest.raises(ValueError, match="must be 1 to 128 characters"):
            await producer.create_session(bad)
    assert not broker.requests


@pytest.mark.parametrize("bad", ["", "127.0.0.1:4437", "ftp://host", "http://"])
def test_address_that_cannot_be_one_is_a_value_error(bad: str) -> None:
    with pytest.raises(ValueError, match="must be http or https"):
        Producer(bad)


@pytest.mark.parametrize("bad", [{"in_flight_max": 0}, {"linger_ms": -1.0}, {"buffer_bytes_max": 10}])
def test_limit_that_cannot_be_one_is_a_value_error(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Limits(**bad)


def test_every_error_of_the_tree_that_a_writer_can_meet_is_public_and_carries_a_code() -> None:
    errors = [found for _, found in inspect.getmembers(package, inspect.isclass) if issubclass(found, ClientError)]
    assert {error.__name__ for error in errors} <= set(package.__all__)
    assert set(ClientError.__subclasses__()) - {OffsetsFailed} < set(errors)
    assert all(isinstance(error.code, str) for error in errors)
