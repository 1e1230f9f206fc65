"""The steps of a session's life as tests take them, in a word each, and what is then told of it."""

from typing import Any

from tests.broker.http.asgi import Answer, Client
from tests.broker.http.session_requests import S

C = "/v1/sessions/c"
"""Of another session than S."""


async def chunk(client: Client, generation_id: str, seq: int, text: str, query: str = "", session: str = S) -> Answer:
    target = f"{session}/generations/{generation_id}/chunks?format=text{query}"
    return await client.post(target, f'"{text}"'.encode(), producer_seq=str(seq))


async def say(client: Client, message_id: str, session: str = S) -> Answer:
    return await client.post(f"{session}/messages", b'{"id":"%b","role":"user"}' % message_id.encode())


async def finish(client: Client, generation_id: str, seq: int, session: str = S) -> Answer:
    return await client.post(f"{session}/generations/{generation_id}/finish", b"{}", producer_seq=str(seq))


async def messages(client: Client, session: str = S) -> dict[str, Any]:
    items = (await client.get(f"{session}/messages")).json["messages"]
    return {item["id"]: item for item in items}


def text(item: Any) -> str:
    return "".join(part["text"] for part in item["message"]["parts"])


def told(answer: Answer, *names: str) -> list[Any]:
    return [answer.status, *(answer.json.get(name) for name in names)]
