"""Every chunk format on a running broker: what `GET /messages` tells of an answer while it runs and after its end."""

import pytest

from consumer.fold import FORMATS, fold
from consumer.plain import encode
from tests.broker.http.asgi import broker
from tests.consumer.fold.dictations import DICTATIONS

S = "/v1/sessions/s"
G = f"{S}/generations/g"


@pytest.mark.parametrize("name", sorted(FORMATS))
async def test_messages_of_every_format_are_folded_as_they_come(name: str) -> None:
    opening, piece, heard = DICTATIONS[name]
    chunks = [*opening, *map(piece, ("Hel", "lo"))]
    async with broker() as client:
        await client.put(S)
        for seq, chunk in enumerate(chunks):
            accepted = await client.post(f"{G}/chunks?format={name}", encode([chunk]), producer_seq=str(seq))
            assert accepted.status == 200
        running = (await client.get(f"{S}/messages/g")).json
        await client.post(f"{G}/finish", b"", producer_seq=str(len(chunks)))
        ended = (await client.get(f"{S}/messages")).json["messages"][0]

    assert (running["format"], running["status"], ended["status"]) == (name, "streaming", "complete")
    assert heard(running["message"]) == "Hello"
    assert running["message"] == ended["message"] == fold(name, chunks)


async def test_a_format_that_is_not_known_names_those_that_are() -> None:
    async with broker() as client:
        await client.put(S)
        refused = await client.post(f"{G}/chunks?format=of-tomorrow", b'"x"', producer_seq="0")

    assert (refused.status, refused.code) == (400, "UNKNOWN_FORMAT")
    assert all(name in refused.json["detail"] for name in FORMATS)
