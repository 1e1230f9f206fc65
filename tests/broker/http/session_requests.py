"""What tests ask of the session API, and all that a refusal must leave as it was."""

import re
from typing import Any

from tests.broker.http.asgi import Answer, Client

S = "/v1/sessions/s"
G = f"{S}/generations/g"
STREAM = "/v1/stream/sessions/s"
JSON_TYPE = {"content-type": "application/json"}
MESSAGE = b'{"id":"m","role":"user","parts":[]}'


async def put(client: Client, body: bytes = b"", target: str = S, **headers: str) -> Answer:
    return await client.put(target, body=body, **headers)


async def post(client: Client, target: str, body: bytes = b"", **headers: str) -> Answer:
    return await client.post(target, body, **headers)


async def chunks(client: Client, seq: int, body: bytes = b'"x"', target: str = G, query: str = "format=text") -> Answer:
    return await client.post(f"{target}/chunks?{query}", body, producer_seq=str(seq))


async def finish(client: Client, seq: int, body: bytes = b"", target: str = G, query: str = "") -> Answer:
    return await client.post(f"{target}/finish?{query}", body, producer_seq=str(seq))


async def records(client: Client) -> list[Any]:
    found: list[Any] = (await client.get(STREAM)).json
    return found


async def everything(client: Client) -> list[bytes]:
    """All that a refusal must leave as it was."""
    targets = (S, f"{S}/messages", G, STREAM)
    return [re.sub(rb'"requestId":"[^"]*"', b"", (await client.get(target)).body) for target in targets]


def facts(answer: Answer, *names: str) -> list[Any]:
    """Those of the answer's body; None for what it does not say."""
    return [answer.json.get(name) for name in names]


def producer_headers(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("producer-")}
