"""R34: every answer says which request, session, generation and message it is about; a refusal does too."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.broker.http.asgi import Answer, Client, broker

S = "/v1/sessions/s"
G = f"{S}/generations/g"
FLAT = b'{"generationId":"flat","chunk":1}'
REQUESTS: dict[str, tuple[str, str, bytes, dict[str, Any]]] = {
    "create": ("PUT", S, b"", {}),
    "state": ("GET", S, b"", {}),
    "message": ("POST", f"{S}/messages", b'{"id":"m2","role":"user"}', {"messageId": "m2"}),
    "messages": ("GET", f"{S}/messages", b"", {}),
    "one message": ("GET", f"{S}/messages/m1", b"", {"id": "m1"}),
    "record": ("POST", f"{S}/records", b'{"type":"presence","key":"k","value":{}}', {}),
    "txid": ("GET", f"{S}/txids/t", b"", {"txid": "t"}),
    "stop all": ("POST", f"{S}/stop", b"", {"stopped": ["g"]}),
    "reset": ("POST", f"{S}/reset", b"", {}),
    "fork": ("POST", f"{S}/fork", b'{"sessionId":"child"}', {"sessionId": "child", "forkedFrom": "s"}),
    "open": ("PUT", f"{S}/generations/g2", b'{"messageId":"n"}', {"generationId": "g2", "messageId": "n"}),
    "chunks": ("POST", f"{G}/chunks", b'["b"]', {"generationId": "g", "messageId": "m"}),
    "generation": ("GET", G, b"", {"generationId": "g", "messageId": "m"}),
    "heartbeat": ("POST", f"{G}/heartbeat", b"", {"generationId": "g", "messageId": "m"}),
    "stop": ("POST", f"{G}/stop", b"", {"generationId": "g", "messageId": "m"}),
    "finish": ("POST", f"{G}/finish", b"{}", {"generationId": "g", "messageId": "m"}),
    "flat": ("POST", f"{S}/chunks", FLAT, {"generationId": "flat", "messageId": "flat"}),
}
REFUSED: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
    "session with a strange body": ("PUT", S, b"[]", {}),
    "unknown parameter": ("GET", f"{G}?x=1", b"", {"generationId": "g"}),
    "batch that is no JSON": ("POST", f"{G}/chunks", b"[", {"generationId": "g"}),
    "gap": ("POST", f"{G}/finish", b"{}", {"generationId": "g", "messageId": "m"}),
    "no such generation": ("GET", f"{S}/generations/none", b"", {"generationId": "none"}),
    "no such message": ("GET", f"{S}/messages/none", b"", {"messageId": "none"}),
    "record that is none": ("POST", f"{S}/records", b"{}", {}),
    "upload in a request": ("GET", f"{G}/upload", b"", {"generationId": "g"}),
}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """One whose session has a message, and a generation that runs."""
    async with broker(async_acks=True) as client:
        await client.put(S, body=b'{"message":{"id":"m1","role":"user"}}', txid="t")
        await client.post(f"{G}/chunks?messageId=m&format=text", b'["a"]', producer_seq="0")
        yield client


async def ask(client: Client, method: str, target: str, body: bytes, seq: int, **headers: str) -> Answer:
    told = {"content-type": "application/json", "producer-seq": str(seq), "x-request-id": "r-1", **headers}
    return await client.send(method, target, body, told)


@pytest.mark.parametrize("name", REQUESTS)
async def test_r34_every_answer_names_what_it_is_about(client: Client, name: str) -> None:
    method, target, body, ids = REQUESTS[name]
    answer = await ask(client, method, target, body, 0 if name == "flat" else 1)
    assert answer.status in (200, 201), answer
    assert answer.headers["x-request-id"] == "r-1"
    assert {"sessionId": "s", **ids}.items() <= answer.json.items()


@pytest.mark.parametrize("name", REFUSED)
async def test_r34_every_refusal_names_what_it_is_about(client: Client, name: str) -> None:
    method, target, body, ids = REFUSED[name]
    answer = await ask(client, method, target, body, 7)
    assert answer.status >= 400, answer
    assert {"requestId": "r-1", "sessionId": "s", **ids}.items() <= answer.json.items()


async def test_r34_batch_that_is_not_durable_yet_names_them_too(client: Client) -> None:
    answer = await ask(client, "POST", f"{G}/chunks", b'["b"]', 1, prefer="respond-async")
    assert answer.status == 202
    assert {"sessionId": "s", "generationId": "g", "messageId": "m"}.items() <= answer.json.items()


async def test_r34_upload_that_is_refused_names_them_too(client: Client) -> None:
    for body, seq in ((b'["b"]\n[', 1), (b"\n", 1), (b'["b"]', 7)):
        headers = {"content-type": "application/x-ndjson", "producer-seq": str(seq), "x-request-id": "r-1"}
        answer = await client.send("POST", f"{G}/chunks", body, headers)
        last = answer.body.splitlines()[-1]
        assert b'"sessionId":"s"' in last, answer
        assert b'"generationId":"g"' in last, answer


async def test_r34_every_ack_of_an_upload_names_them_and_so_does_what_ends_it(client: Client) -> None:
    headers = {"content-type": "application/x-ndjson", "producer-seq": "1", "x-request-id": "r-1"}
    answer = await client.send("POST", f"{G}/chunks", [b'["b"]\n', b'["c"]\n', b"["], headers)
    *acks, last = [msgspec.json.decode(line) for line in answer.body.splitlines()]
    ids = {"sessionId": "s", "generationId": "g", "messageId": "m"}
    assert acks
    assert all(ids.items() <= ack.items() for ack in acks)
    assert ids.items() <= last["error"].items()


async def test_r34_first_batch_that_is_not_durable_yet_names_its_message(client: Client) -> None:
    for generation, query, message in (("new", "", "new"), ("other", "&messageId=n", "n")):
        target = f"{S}/generations/{generation}/chunks?format=text&lane={generation}{query}"
        answer = await ask(client, "POST", target, b'["a"]', 0, prefer="respond-async")
        assert answer.status == 202
        assert {"sessionId": "s", "generationId": generation, "messageId": message}.items() <= answer.json.items()


async def test_r34_bug_of_ours_names_them_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client.app.partition, "propose", broken)
    for target, ids in ((f"{G}/heartbeat", {"generationId": "g"}), (f"{S}/reset", {})):
        answer = await ask(client, "POST", target, b"", 1)
        assert answer.status == 500
        assert {"requestId": "r-1", "sessionId": "s", "code": "INTERNAL", **ids}.items() <= answer.json.items()
