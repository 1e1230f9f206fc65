"""Forks of a session over HTTP: what they have of it, and what becomes of them without it."""

import pytest

from broker import limits
from broker.core.entry import Kind
from tests.broker.http.asgi import Answer, Client
from tests.broker.http.session_requests import JSON_TYPE, G, S
from tests.broker.http.session_steps import C, chunk, finish, messages, say, text, told
from tests.eventually import eventually

pytestmark = pytest.mark.usefixtures("session")
FORK = b'{"sessionId":"c"}'
FORK_AT_START = b'{"sessionId":"c","offset":"-1"}'


async def fork(client: Client, body: bytes = FORK, source: str = S) -> Answer:
    return await client.post(f"{source}/fork", body)


async def test_fork_begins_with_what_its_source_has_and_goes_its_own_way(client: Client) -> None:
    await client.put(f"{S}", body=b"{}")
    await say(client, "u")
    at = (await chunk(client, "g", 0, "a")).offset
    made = await fork(client, b'{"sessionId":"c","metadata":{"title":"t"}}')
    assert told(made, "sessionId", "forkedFrom", "forkOffset") == [201, "c", "s", at]
    await chunk(client, "g", 1, "b")
    await say(client, "mine", C)

    assert (await client.get(C)).json["metadata"] == {"title": "t"}
    mine, theirs = await messages(client, C), await messages(client)
    assert (list(mine), list(theirs)) == (["u", "g", "mine"], ["u", "g"])
    assert (mine["g"]["status"], mine["g"]["reason"], text(mine["g"])) == ("aborted", "forked", "a")
    assert (theirs["g"]["status"], text(theirs["g"])) == ("streaming", "ab")
    assert told(await fork(client, b'{"sessionId":"c"}'), "forkedFrom", "forkOffset") == [200, "s", at]


async def test_ids_before_the_fork_position_stay_taken_in_the_fork(client: Client) -> None:
    await say(client, "u")
    await chunk(client, "g", 0, "a")
    await finish(client, "g", 1)
    await fork(client)
    assert (await say(client, "u", C)).json["duplicate"] is True
    other = await client.post(f"{C}/messages", b'{"id":"u","role":"tool"}')
    assert other.code == "MESSAGE_EXISTS"
    assert told(await chunk(client, "g", 0, "a", session=C), "code", "generationStatus") == [403, "FENCED", "complete"]
    assert told(await chunk(client, "h", 0, "a", "&messageId=g", session=C), "code") == [409, "MESSAGE_EXISTS"]
    assert told(await chunk(client, "h", 0, "a", session=C), "fence") == [200, 2]


async def test_answer_that_a_fork_has_cut_short_goes_on_in_it(client: Client) -> None:
    await chunk(client, "g", 0, "Hel", "&messageId=m")
    await fork(client)
    answer = await chunk(client, "h", 0, "lo", "&continues=g", session=C)
    assert told(answer, "lane", "messageId") == [200, "main", "m"]
    await finish(client, "h", 1, C)
    assert text((await messages(client, C))["m"]) == "Hello"
    assert text((await messages(client))["m"]) == "Hel"


@pytest.mark.parametrize(("at", "seen"), [("u", ["u"]), ("g", ["u", "g"]), ("v", ["u", "g", "v"])])
async def test_fork_at_a_message_has_everything_up_to_its_end(client: Client, at: str, seen: list[str]) -> None:
    await say(client, "u")
    await chunk(client, "g", 0, "a")
    await finish(client, "g", 1)
    await say(client, "v")
    await say(client, "w")
    assert (await fork(client, b'{"sessionId":"c","messageId":"%b"}' % at.encode())).status == 201
    forked = await messages(client, C)
    assert list(forked) == seen
    assert {item["status"] for item in forked.values()} == {"complete"}


async def test_fork_at_a_message_that_is_being_written_has_what_is_there(client: Client) -> None:
    await chunk(client, "g", 0, "a")
    await chunk(client, "h", 0, "b", "&lane=side")
    await fork(client, b'{"sessionId":"c","messageId":"g"}')
    assert {item["reason"] for item in (await messages(client, C)).values()} == {"forked"}


async def test_fork_at_an_offset_ends_what_was_open_there_only(client: Client) -> None:
    at = (await chunk(client, "g", 0, "a")).offset
    await finish(client, "g", 1)
    assert (await client.get(G)).json["status"] == "complete"
    await fork(client, b'{"sessionId":"c","offset":"%b"}' % at.encode())
    assert told(await client.get(f"{C}/generations/g"), "status", "reason", "chunks") == [200, "aborted", "forked", 1]
    await fork(client, b'{"sessionId":"d","offset":"-1"}')
    assert await messages(client, "/v1/sessions/d") == {}


async def test_fork_outlives_a_reset_and_the_end_of_its_source(client: Client) -> None:
    """Its records are the source's: they stay while it is there, and no longer."""
    await say(client, "u")
    await fork(client)
    await fork(client, b'{"sessionId":"d"}', C)
    await client.post(f"{S}/reset", b"{}")
    await say(client, "v")
    await fork(client, b'{"sessionId":"e"}')
    await client.app.partition.checkpoint()
    await client.send("DELETE", S)
    for session, seen in (("c", ["u"]), ("d", ["u"]), ("e", ["v"])):
        assert list(await messages(client, f"/v1/sessions/{session}")) == seen
    await client.post(f"{C}/reset", b"{}")
    assert list(await messages(client, "/v1/sessions/d")) == ["u"]
    for session in ("c", "d", "e"):
        assert (await client.send("DELETE", f"/v1/sessions/{session}")).status == 204
    assert (await client.put(S)).code == "SESSION_EXISTS"  # until the sweeper has told the sources

    async def is_free() -> bool:
        return (await client.put(S)).status == 201

    assert await eventually(is_free)


async def test_fork_into_a_session_that_is_there_is_refused(client: Client) -> None:
    await client.put(C)
    assert told(await fork(client), "code") == [409, "SESSION_EXISTS"]
    await fork(client, b'{"sessionId":"d"}')
    other = await fork(client, b'{"sessionId":"d","offset":"-1"}')
    assert told(other, "code") == [409, "SESSION_EXISTS"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"sessionId":"s"}', 400, "INVALID_BODY"),
        (b"{}", 400, "INVALID_BODY"),
        (b'{"sessionId":"a b"}', 400, "INVALID_BODY"),
        (b'{"sessionId":"c","messageId":"m","offset":"-1"}', 400, "INVALID_BODY"),
        (b'{"sessionId":"c","offset":"junk"}', 400, "INVALID_OFFSET"),
        (b'{"sessionId":"c","messageId":"none"}', 404, "MESSAGE_NOT_FOUND"),
    ],
)
async def test_fork_that_makes_no_sense_makes_nothing(client: Client, body: bytes, status: int, code: str) -> None:
    assert told(await fork(client, body), "code") == [status, code]
    assert (await client.get(C)).code == "SESSION_NOT_FOUND"


async def test_fork_of_what_is_no_more_is_refused(client: Client) -> None:
    offset = (await say(client, "m")).offset
    await client.post(f"{S}/reset", b"{}")
    gone = await fork(client, b'{"sessionId":"c","offset":"%b"}' % offset.encode())
    assert told(gone, "code") == [410, "OFFSET_GONE"]
    assert told(await fork(client, source="/v1/sessions/none"), "code") == [404, "SESSION_NOT_FOUND"]


async def test_fork_of_more_than_an_entry_can_carry_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORK_IDS_MAX", 2)
    for message_id in ("a", "b", "c"):
        await say(client, message_id)
    assert told(await fork(client), "code") == [409, "FORK_TOO_LARGE"]
    assert (await fork(client, b'{"sessionId":"c","messageId":"a"}')).code == "FORK_TOO_LARGE"


async def test_source_is_told_of_a_fork_that_did_not_come(client: Client) -> None:
    """Somebody else took its id meanwhile: of two that race for it, one gets it."""
    partition = client.app.partition
    first, second = (client.begin("POST", f"{S}/fork", body, JSON_TYPE) for body in (FORK, FORK_AT_START))
    answers = [await first.answer(), await second.answer()]
    assert sorted(answer.status for answer in answers) == [201, 409]
    assert partition.counts.outcomes[Kind.FORK_UNREF, "accepted"] == 1
    source = await partition.stream("sessions/s")
    assert source is not None
    assert len(source.children) == 1
