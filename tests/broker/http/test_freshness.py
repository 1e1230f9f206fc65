"""broker/http/freshness.py: when a node asks the log before it answers."""

from collections.abc import Awaitable, Callable

import pytest

from broker.http.freshness import fresh
from broker.http.problems import BadRequest
from broker.http.request import Request
from broker.http.response import Response
from consumer.wire import Code


class Node:
    """A node that is behind until it catches up; what it answers then, and how often it caught up."""

    def __init__(self, *answers: Response | BadRequest, among_others: bool = True) -> None:
        self.answers = list(answers)
        self.caught_up = 0
        self.among_others = among_others

    async def catch_up(self) -> bool:
        self.caught_up += 1
        return self.among_others

    async def respond(self, _request: Request, _receive: Callable[[], Awaitable[object]]) -> Response:
        answer = self.answers.pop(0)
        if isinstance(answer, BadRequest):
            raise answer
        return answer


async def no_body() -> dict[str, object]:
    return {"type": "http.disconnect"}


async def ask(node: Node, method: str = "GET", path: str = "a", query: bytes = b"", **headers: bytes) -> Response:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    request = Request(method, path, named, query, path.encode(), "r", "http")
    answer = await fresh(node.respond, node.catch_up)(request, no_body)
    assert isinstance(answer, Response)
    return answer


FOUND, NOTHING = Response(200, [], b"found"), Response(404, [])


async def test_what_is_found_is_told_without_asking() -> None:
    node = Node(FOUND)
    assert (await ask(node), node.caught_up) == (FOUND, 0)


@pytest.mark.parametrize(
    "missing",
    [NOTHING, Response(410, []), Response(204, []), BadRequest(Code.STREAM_NOT_FOUND), BadRequest(Code.INVALID_OFFSET)],
)
async def test_that_nothing_is_there_is_told_only_after_catching_up(missing: Response | BadRequest) -> None:
    node = Node(missing, FOUND)
    assert (await ask(node), node.caught_up) == (FOUND, 1)


async def test_answer_about_the_request_itself_is_not_asked_about() -> None:
    node = Node(BadRequest(Code.INVALID_PARAMETER))
    with pytest.raises(BadRequest):
        await ask(node)
    assert node.caught_up == 0


async def test_where_nobody_else_writes_the_first_answer_stands() -> None:
    assert await ask(Node(NOTHING, among_others=False)) is NOTHING
    with pytest.raises(BadRequest):
        await ask(Node(BadRequest(Code.STREAM_NOT_FOUND), among_others=False))


async def test_head_asks_for_the_end_and_so_catches_up_first() -> None:
    node = Node(FOUND)
    assert (await ask(node, "HEAD"), node.caught_up) == (FOUND, 1)


async def test_tail_of_this_moment_is_asked_for_and_not_what_it_was() -> None:
    node = Node(FOUND, FOUND)
    assert (await ask(node, query=b"offset=now"), node.caught_up) == (FOUND, 1)
    assert (await ask(node, query=b"offset=now&live=sse"), node.caught_up) == (FOUND, 1)


async def test_only_the_partition_that_is_read_catches_up() -> None:
    node, there = Node(NOTHING, FOUND), Node()
    request = Request("GET", "a", {}, b"", b"a", "r", "http")
    await fresh(node.respond, node.catch_up, lambda _: there.catch_up())(request, no_body)
    assert (node.caught_up, there.caught_up) == (0, 1)


async def test_poll_that_waited_for_nothing_has_waited() -> None:
    waited = Response(204, [])
    node = Node(waited)
    assert (await ask(node, query=b"offset=now&live=long-poll"), node.caught_up) == (waited, 0)


async def test_writes_are_decided_by_the_log_but_for_those_that_look_first() -> None:
    node = Node(FOUND, FOUND, FOUND)
    await ask(node, "POST")
    assert node.caught_up == 0
    await ask(node, "PUT", stream_forked_from=b"/v1/stream/b")
    await ask(node, "POST", "s/fork")
    assert node.caught_up == 2
