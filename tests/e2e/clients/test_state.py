"""`@durable-streams/state`, which makes collections of a session's records."""

from typing import Any
from unittest.mock import ANY

import httpx
import pytest

from producer import Producer
from tests.e2e.clients.node import program
from tests.live import Broker

QUESTION = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "Which?"}]}
WORDS = ["Both", ", ", "of course"]


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_session_becomes_collections_and_a_txid_resolves(broker: Broker, live: str) -> None:
    url = f"{broker.url}/v1/stream/sessions/s"
    await write_session(broker)

    async with program("state.mjs", url, live, "tx-before", "tx-to-come") as db:
        loaded = await db.heard("loaded")
        async with Producer(broker.url) as producer:
            await producer.send_message("s", {"id": "thanks", "role": "user"}, txid="tx-to-come")
        then = await db.heard("result")
        await db.ended()

    assert loaded["generations"] == [
        generation("full", "complete", fence=1, metadata={"model": "m"}, usage={"tokens": 3}),
        generation("cut", "aborted", fence=2, reason="stopped"),
        generation("open", "streaming", fence=4),  # a stop raises the fence of its lane
    ]
    assert loaded["chunks"] == [
        *[{"chunkId": f"full:{n}", "messageId": "full-answer", "chunk": word} for n, word in enumerate(WORDS)],
        {"chunkId": "cut:0", "messageId": "cut-answer", "chunk": "I would"},
        {"chunkId": "open:0", "messageId": "open-answer", "chunk": {"any": ["thing", None]}},
    ]
    assert loaded["messages"] == [QUESTION]
    stop = {"generationId": "cut", "messageId": "cut-answer", "requestedBy": "u", "reason": "enough", "createdAt": ANY}
    assert loaded["stops"] == [stop]
    assert then == {**loaded, "messages": [QUESTION, {"id": "thanks", "role": "user"}], "strange": "rejected"}


async def write_session(broker: Broker) -> None:
    """A question; an answer that is whole, one that was stopped and one that is open."""
    async with Producer(broker.url) as producer:
        await producer.create_session("s")
        await producer.send_message("s", QUESTION, txid="tx-before")
        async with producer.generation("s", generation_id="full", message_id="full-answer", format="text") as full:
            for word in WORDS:
                await full.write(word)
            await full.finish(usage={"tokens": 3}, metadata={"model": "m"})
    async with httpx.AsyncClient(base_url=f"{broker.url}/v1/sessions/s/generations/") as http:
        await post(http, "cut/chunks?messageId=cut-answer&format=text", "I would")
        await post(http, "cut/stop", {"requestedBy": "u", "reason": "enough"})
        await post(http, "open/chunks?messageId=open-answer&format=text", {"any": ["thing", None]})


async def post(http: httpx.AsyncClient, target: str, body: object) -> None:
    (await http.post(target, json=body, headers={"producer-seq": "0"})).raise_for_status()


def generation(generation_id: str, status: str, **facts: object) -> dict[str, Any]:
    """The row of a generation."""
    ended = {} if status == "streaming" else {"endedAt": ANY}
    place = {"generationId": generation_id, "messageId": f"{generation_id}-answer", "lane": "main"}
    return {**place, "role": "assistant", "format": "text", "status": status, "createdAt": ANY, **ended, **facts}
