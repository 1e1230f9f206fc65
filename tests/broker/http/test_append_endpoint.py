"""Plain appends through ASGI: begun together where they come together, and each by itself where something is off."""

import asyncio

import pytest

from broker import limits
from broker.partition import Partition
from tests.broker.http.asgi import Client, Exchange

PATH = "/v1/stream/a"


def append(client: Client, body: bytes | list[bytes], **headers: str) -> Exchange:
    """Begin an append as programs send one, with its length."""
    length = len(body) if isinstance(body, bytes) else sum(map(len, body))
    told = {"content-type": "application/json", "content-length": str(length), **headers}
    return client.begin("POST", PATH, body, told)


async def test_appends_of_one_turn_are_each_answered_with_their_own(client: Client) -> None:
    await client.put(PATH)
    answers = [await asked.answer() for asked in [append(client, b"[%d]" % n) for n in range(20)]]
    assert [answer.status for answer in answers] == [204] * 20
    assert [answer.offset for answer in answers] == sorted({answer.offset for answer in answers})
    assert (await client.get(PATH)).json == list(range(20))


async def test_an_append_that_makes_no_sense_fails_none_beside_it(client: Client) -> None:
    await client.put(PATH)
    asked = [append(client, body) for body in (b"[1]", b"[", b"", b"[2]")]
    assert [(await one.answer()).status for one in asked] == [204, 400, 400, 204]


@pytest.mark.parametrize("turns", [1, 2])
async def test_a_request_that_is_cancelled_leaves_those_beside_it_alone(client: Client, turns: int) -> None:
    """Before it is begun, or when it has been proposed."""
    await client.put(PATH)
    left, stays = append(client, b"[1]"), append(client, b"[2]")
    for _ in range(turns):
        await asyncio.sleep(0)
    left.task.cancel()
    assert (await stays.answer()).status == 204
    assert left.sent.empty()
    assert (await append(client, b"[3]").answer()).status == 204


async def test_a_client_that_leaves_before_its_body_came_is_not_answered(client: Client) -> None:
    await client.put(PATH)
    left = append(client, [], **{"content-length": "3"})
    left.leave()
    await left.task
    assert left.sent.empty()
    assert (await client.get(PATH)).json == []


async def test_a_body_longer_than_its_length_says_is_held_to_the_bound_of_all(client: Client) -> None:
    await client.put(PATH)
    answer = await append(client, b" " * (limits.BODY_BYTES_MAX + 1), **{"content-length": "3"}).answer()
    assert (answer.status, answer.code) == (413, "BODY_TOO_LARGE")


async def test_an_append_waits_while_there_is_no_room(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.put(PATH)
    looks = iter([False, False])
    has_room = Partition.has_room
    monkeypatch.setattr(Partition, "has_room", lambda *given: next(looks, True) and has_room(*given))
    asked, beside = append(client, b"[1]"), append(client, b"[2]")
    assert [(await one.answer()).status for one in (asked, beside)] == [204, 204]
    assert sorted((await client.get(PATH)).json) == [1, 2]


@pytest.mark.parametrize("body", [b"[1]", [b"[", b"1]"]])
async def test_only_a_page_is_told_what_pages_may_see_of_a_write(client: Client, body: bytes | list[bytes]) -> None:
    """A plain append, and one in parts."""
    await client.put(PATH)
    to_program = (await append(client, body).answer()).headers
    to_page = (await append(client, body, origin="https://elsewhere.test").answer()).headers
    assert to_page["access-control-allow-origin"] == "*"
    assert "stream-next-offset" in to_page["access-control-expose-headers"]
    assert to_page["cross-origin-resource-policy"] == "cross-origin"
    assert to_page.keys() - to_program.keys() == {
        "access-control-allow-origin",
        "access-control-expose-headers",
        "cross-origin-resource-policy",
    }


async def test_what_is_read_says_the_same_to_everybody(client: Client) -> None:
    """A cache may keep it, and hand it to a page that asks later."""
    await client.put(PATH)
    assert (await client.get(PATH)).headers["access-control-allow-origin"] == "*"
    assert (await client.send("HEAD", PATH)).headers["access-control-allow-origin"] == "*"
