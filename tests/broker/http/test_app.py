"""The whole application on the memory engine: what every answer carries, and what happens to what no API takes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker import limits
from broker.core.entry import Entry
from broker.core.outcome import Outcome
from broker.errors import EngineStopped, Overloaded, Unavailable
from broker.partition import Partition
from tests.broker.http.asgi import Client, broker

PATH = "/v1/stream/a"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker(body_bytes_max=1000) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/health", 200),
        ("GET", PATH, 404),
        ("DELETE", PATH, 404),
        ("PATCH", PATH, 405),
        ("PUT", PATH, 201),
        ("PUT", "/v1/stream/sessions/s", 405),
        ("POST", "/v1/stream/sessions/s", 405),
        ("GET", "/v1/stream/", 400),
        ("GET", "/v1/stream/a/../b", 400),
        ("GET", "/v1/stream/__ds/subscriptions/x", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/health", 405),
        ("OPTIONS", PATH, 204),
        ("OPTIONS", "/health", 204),
    ],
)
async def test_every_answer_carries_the_common_headers_and_a_request_id(
    client: Client, method: str, target: str, status: int
) -> None:
    answer = await client.send(method, target, headers={"x-request-id": "mine", "origin": "https://elsewhere.test"})
    assert answer.status == status
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "stream-next-offset" in answer.headers["access-control-expose-headers"]


async def test_problem_names_its_code_and_request(client: Client) -> None:
    answer = await client.get(PATH)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json["status"], answer.code) == (404, "STREAM_NOT_FOUND")
    assert answer.json["requestId"] == answer.headers["x-request-id"]


async def test_preflight_allows_every_header_of_the_protocol(client: Client) -> None:
    allowed = (await client.send("OPTIONS", PATH)).headers["access-control-allow-headers"]
    for name in ("authorization", "if-none-match", "producer-seq", "stream-closed", "last-event-id"):
        assert name in allowed


async def test_reserved_paths_answer_in_the_protocols_own_form(client: Client) -> None:
    answer = await client.send("GET", "/v1/stream/__ds/nothing")
    assert (answer.status, answer.json["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("target", ["/v1/stream/__ds", "/v1/stream/%5F_ds/subscriptions/x", "/v1/stream/__ds%2Fx"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_no_spelling_of_a_reserved_path_makes_it_a_stream(client: Client, method: str, target: str) -> None:
    assert (await client.send(method, target)).code == "NOT_FOUND"


async def test_body_beyond_the_bound_changes_nothing(client: Client) -> None:
    tail = (await client.put(PATH, "text/plain")).offset
    for body in ([b"x" * 1001], [b"x" * 600, b"x" * 600]):
        answer = await client.send("POST", PATH, body, {"content-type": "text/plain"})
        assert (answer.status, answer.code, answer.headers["connection"]) == (413, "BODY_TOO_LARGE", "close")
    assert (await client.send("HEAD", PATH)).offset == tail


async def test_append_goes_on_when_its_client_leaves(client: Client) -> None:
    await client.put(PATH, "text/plain")
    exchange = client.begin("POST", PATH, b"x", {"content-type": "text/plain"})
    exchange.leave()
    await exchange.task
    assert (await client.get(PATH)).body == b"x"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Overloaded("too much"), "OVERLOADED"),
        (Unavailable("disk full"), "UNAVAILABLE"),
        (EngineStopped("/secret/path: fsync failed"), "ENGINE_STOPPED"),
    ],
)
async def test_broker_that_cannot_tells_when_to_come_back(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    async def fail(_entry: Entry) -> Outcome:
        await asyncio.sleep(0)
        raise error

    monkeypatch.setattr(client.app.partition, "propose", fail)
    answer = await client.put(PATH)
    assert (answer.status, answer.code, answer.json["retryable"]) == (503, code, True)
    assert answer.headers["retry-after"] == "1"
    assert b"secret" not in answer.body


async def test_bug_is_answered_with_500_and_nothing_of_the_inside(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_entry: Entry) -> Outcome:
        await asyncio.sleep(0)
        raise RuntimeError("secret")

    monkeypatch.setattr(client.app.partition, "propose", fail)
    answer = await client.put(PATH, x_request_id="find-me")
    assert (answer.status, answer.code) == (500, "INTERNAL")
    assert b"secret" not in answer.body
    assert "find-me" in caplog.text


async def test_broker_is_not_ready_while_it_drains_and_yet_healthy(client: Client) -> None:
    assert (await client.get("/ready")).status == 200
    client.app.drain()
    assert (await client.get("/ready")).json == {"status": "draining"}
    assert (await client.get("/health")).status == 200


async def test_node_that_is_behind_is_healthy_and_not_ready(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart would not help it; readers and writers are better off elsewhere."""
    monkeypatch.setattr(Partition, "lag_s", property(lambda _: limits.LAG_S_MAX))
    assert (await client.get("/ready")).json == {"status": "behind"}
    assert (await client.get("/health")).status == 200


async def test_stopped_engine_is_not_healthy(client: Client) -> None:
    assert isinstance(client.app.partition, Partition)
    client.app.partition.failure = EngineStopped("fsync failed")
    for target in ("/health", "/ready"):
        answer = await client.get(target)
        assert (answer.status, answer.json) == (503, {"status": "stopped"})


async def test_metrics_count_entries_records_and_responses(client: Client) -> None:
    await client.put(PATH)
    await client.post(PATH, b"[1,2,3]")
    await client.post(PATH, b"[")
    lines = (await client.get("/metrics")).body.decode().splitlines()
    assert 'streamfold_entries_total{kind="append",result="accepted"} 1.0' in lines
    assert "streamfold_appended_records_total 3.0" in lines
    assert 'streamfold_responses_total{status="2xx"} 2.0' in lines
    assert 'streamfold_responses_total{status="4xx"} 1.0' in lines


async def test_application_mounted_under_a_prefix_finds_its_paths(client: Client) -> None:
    sent = []

    async def send(message: object) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"/log{PATH}",
        "raw_path": f"/log{PATH}".encode(),
        "root_path": "/log",
        "query_string": b"",
        "headers": [],
    }
    await client.app(scope, receive, send)
    assert (await client.send("HEAD", PATH)).status == 200
