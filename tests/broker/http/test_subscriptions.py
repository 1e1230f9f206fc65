"""Subscriptions over HTTP: what a request becomes, and what bad input is told (PROTOCOL.md 6, 7)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from broker import limits
from tests.broker.http.asgi import Answer, Client, broker
from tests.eventually import eventually

SUB = "/v1/stream/__ds/subscriptions/sub-1"
PULL = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wake/pool"}
HOOK = {"type": "webhook", "pattern": "events/*", "webhook": {"url": "http://127.0.0.1:1/hook"}}


async def put(client: Client, body: Any, target: str = SUB) -> Answer:
    return await client.send("PUT", target, msgspec.json.encode(body), {"content-type": "application/json"})


async def post(client: Client, action: str, body: Any, token: str = "", target: str = SUB) -> Answer:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return await client.send("POST", f"{target}/{action}", msgspec.json.encode(body), headers)


def code(answer: Answer) -> tuple[int, str]:
    assert set(answer.json) == {"error"}
    assert answer.json["error"]["message"]
    assert answer.headers["content-type"] == "application/json"
    return answer.status, answer.json["error"]["code"]


async def claimed(client: Client) -> Any:
    """A pull-wake subscription with one event to process, and the lease on it."""
    await put(client, PULL)
    await client.put("/v1/stream/events/a", body=b'"one"')
    return (await post(client, "claim", {"worker": "me"})).json


# -- configuration ---------------------------------------------------------------------------------------------------


async def test_subscription_is_told_as_the_protocol_has_it(client: Client) -> None:
    answer = await put(client, {**PULL, "streams": ["/x/", "x"], "lease_ttl_ms": 1_000, "description": "d"})
    assert answer.status == 201
    created_at = answer.json.pop("created_at")
    assert created_at.endswith("Z")
    assert answer.json == {
        "id": "sub-1",
        "subscription_id": "sub-1",
        "type": "pull-wake",
        "pattern": "events/*",
        "streams": [{"path": "x", "link_type": "explicit", "acked_offset": f"{0:016x}_{0:016x}"}],
        "webhook": None,
        "wake_stream": "wake/pool",
        "lease_ttl_ms": 1_000,
        "status": "active",
        "description": "d",
    } | {"created_at": created_at}
    assert (await client.get(SUB)).json == answer.json


async def test_order_and_repetition_of_streams_do_not_make_another_configuration(client: Client) -> None:
    """PROTOCOL 6.2: `streams[]` is normalized."""
    assert (await put(client, {**PULL, "streams": ["a", "b"]})).status == 201
    assert (await put(client, {**PULL, "streams": ["b/", "a", "b"]})).status == 200
    assert code(await put(client, {**PULL, "streams": ["a"]})) == (409, "SUBSCRIPTION_ALREADY_EXISTS")


async def test_existing_streams_are_linked_at_their_tails(client: Client) -> None:
    tail = (await client.put("/v1/stream/events/a", body=b'["one", "two"]')).offset
    await client.put("/v1/stream/other/a", body=b'"one"')
    links = (await put(client, PULL)).json["streams"]
    assert links == [{"path": "events/a", "link_type": "glob", "acked_offset": tail}]
    assert code(await post(client, "claim", {"worker": "me"})) == (409, "NO_PENDING_WORK")


async def test_callbacks_go_where_the_operator_says() -> None:
    async with broker(public_url="https://streams.example/base/") as client:
        signing = (await put(client, HOOK)).json["webhook"]["signing"]
    assert signing["jwks_url"] == "https://streams.example/base/v1/stream/__ds/jwks.json"


@pytest.mark.parametrize(
    "body",
    [
        *[None, [], 1, "x", {}, {"type": "webhook"}, {"type": "smoke-signal", "pattern": "a"}],
        {"type": "pull-wake", "wake_stream": "w"},
        {"type": "pull-wake", "pattern": "a"},
        {"type": "pull-wake", "pattern": "a", "wake_stream": ""},
        {"type": "pull-wake", "pattern": "a", "wake_stream": 1},
        {"type": "webhook", "pattern": "a", "webhook": {}},
        {**PULL, "streams": [1]},
        {**PULL, "streams": "events/a"},
        {**PULL, "streams": ["a//b"]},
        {**PULL, "streams": ["a/../b"]},
        {**PULL, "streams": ["a\u0000b"]},
        {**PULL, "streams": ["__ds/jwks.json"]},
        {**PULL, "streams": [""]},
        {**PULL, "streams": ["wake/pool"]},
        {**PULL, "streams": ["x" * (limits.PATH_BYTES_MAX + 1)]},
        {**PULL, "streams": [f"s{number}" for number in range(limits.LINKS_MAX + 1)]},
        {**PULL, "pattern": "a//b"},
        {**PULL, "pattern": "a*"},
        {**PULL, "pattern": "***"},
        {**PULL, "pattern": "a\n"},
        {**PULL, "pattern": "/".join(["**", "a"] * 40)},
        {**PULL, "pattern": "x" * (limits.PATTERN_CHARS_MAX + 1)},
        *[{**PULL, "lease_ttl_ms": wrong} for wrong in (0, 999, 600_001, -1, 1.5, "1000", True, None)],
        {**PULL, "description": "x" * (limits.DESCRIPTION_CHARS_MAX + 1)},
        {**PULL, "description": 1},
    ],
)
async def test_configuration_that_makes_no_sense_is_refused(client: Client, body: Any) -> None:
    assert code(await put(client, body)) == (400, "INVALID_REQUEST")
    assert (await client.get(SUB)).status == 404


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"type": "\xff"}', b'{"type": "\\ud800"}', b"[" * 100_000])
async def test_body_that_is_no_json_is_refused(client: Client, body: bytes) -> None:
    assert code(await client.send("PUT", SUB, body)) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/hook", "https://169.254.169.254/", "http://worker.example/", "https://[::1]/", "x", ""]
)
async def test_webhook_that_must_not_be_called_is_refused(client: Client, url: str) -> None:
    assert code(await put(client, {**HOOK, "webhook": {"url": url}})) == (400, "WEBHOOK_URL_REJECTED")


async def test_http_to_localhost_is_refused_when_others_reach_the_broker() -> None:
    async with broker(host="0.0.0.0", insecure=True) as client:  # noqa: S104 -- nothing listens
        assert code(await put(client, HOOK)) == (400, "WEBHOOK_URL_REJECTED")


@pytest.mark.parametrize("subscription_id", ["x" * 129, "a%20b", "%00", "a%0a", "%C3%A9", "a*"])
async def test_id_that_no_client_should_use_is_refused(client: Client, subscription_id: str) -> None:
    answer = await put(client, PULL, f"/v1/stream/__ds/subscriptions/{subscription_id}")
    assert answer.status == 400
    assert answer.json["error"]["code"] in ("INVALID_REQUEST", "INVALID_PATH")


async def test_pattern_that_covers_more_than_a_subscription_holds_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 2)
    for name in "abc":
        await client.put(f"/v1/stream/events/{name}")
    assert code(await put(client, PULL)) == (429, "TOO_MANY_LINKS")
    assert (await client.get(SUB)).status == 404


async def test_more_subscriptions_than_allowed_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SUBSCRIPTIONS_MAX", 1)
    await put(client, PULL)
    assert (await put(client, PULL)).status == 200
    answer = await put(client, PULL, "/v1/stream/__ds/subscriptions/sub-2")
    assert code(answer) == (429, "TOO_MANY_SUBSCRIPTIONS")


# -- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "told"),
    [
        ("GET", "/v1/stream/__ds/nothing", (404, "NOT_FOUND")),
        ("GET", f"{SUB}/nothing", (404, "NOT_FOUND")),
        ("GET", f"{SUB}/claim/x", (404, "NOT_FOUND")),
        ("GET", SUB, (404, "SUBSCRIPTION_NOT_FOUND")),
        ("GET", f"{SUB}/claim", (405, "METHOD_NOT_ALLOWED")),
        ("POST", SUB, (405, "METHOD_NOT_ALLOWED")),
        ("PUT", f"{SUB}/streams", (405, "METHOD_NOT_ALLOWED")),
        ("POST", f"{SUB}/streams/a", (405, "METHOD_NOT_ALLOWED")),
        ("POST", "/v1/stream/__ds/jwks.json", (405, "METHOD_NOT_ALLOWED")),
        ("GET", "/v1/stream/__ds/%ff", (400, "INVALID_PATH")),
        ("DELETE", f"{SUB}/streams/a//b", (400, "INVALID_PATH")),
        ("DELETE", f"{SUB}/streams/a", (404, "SUBSCRIPTION_NOT_FOUND")),
    ],
)
async def test_what_is_not_there_is_told_in_the_protocols_form(
    client: Client, method: str, target: str, told: tuple[int, str]
) -> None:
    assert code(await client.send(method, target, b"{}")) == told


async def test_body_beyond_the_bound_is_refused() -> None:
    async with broker(body_bytes_max=100) as client:
        assert code(await put(client, {**PULL, "description": "x" * 200})) == (413, "BODY_TOO_LARGE")


async def test_keys_may_be_kept_for_a_while(client: Client) -> None:
    """PROTOCOL 6.5."""
    answer = await client.get("/v1/stream/__ds/jwks.json")
    assert answer.headers["content-type"] == "application/jwk-set+json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    (key,) = answer.json["keys"]
    assert {name: key[name] for name in ("kty", "crv", "use", "alg")} == {
        "kty": "OKP",
        "crv": "Ed25519",
        "use": "sig",
        "alg": "EdDSA",
    }
    assert not {"d", "p", "q"} & set(key)


async def test_deleting_what_is_not_there_is_fine(client: Client) -> None:
    assert (await client.send("DELETE", SUB)).status == 204


# -- membership ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [{}, {"streams": []}, {"streams": [1]}, {"streams": ["wake/pool"]}, {"streams": ["a//b"]}]
)
async def test_membership_that_makes_no_sense_is_refused(client: Client, body: Any) -> None:
    await put(client, PULL)
    assert code(await post(client, "streams", body)) == (400, "INVALID_REQUEST")


async def test_explicit_link_that_goes_leaves_the_pattern_its_own(client: Client) -> None:
    """PROTOCOL 6.4."""
    await client.put("/v1/stream/events/a", body=b'"one"')
    await put(client, PULL)
    for _ in range(2):  # adding is idempotent
        assert (await post(client, "streams", {"streams": ["events/a", "x y/%41"]})).status == 204
    links = {link["path"]: link["link_type"] for link in (await client.get(SUB)).json["streams"]}
    assert links == {"events/a": "explicit", "x y/%41": "explicit"}
    for path in ("events%2Fa", "x%20y%2F%2541", "events/never"):
        assert (await client.send("DELETE", f"{SUB}/streams/{path}")).status == 204
    links = {link["path"]: link["link_type"] for link in (await client.get(SUB)).json["streams"]}
    assert links == {"events/a": "glob"}


# -- wakes -----------------------------------------------------------------------------------------------------------


async def test_work_is_claimed_processed_and_done(client: Client) -> None:
    """PROTOCOL 7.2."""
    lease = await claimed(client)
    (stream,) = lease["streams"]
    assert (stream["path"], stream["has_pending"], lease["lease_ttl_ms"]) == ("events/a", True, 30_000)
    report = {"wake_id": lease["wake_id"], "generation": lease["generation"]}
    assert (await post(client, "ack", report, lease["token"])).json == {"ok": True, "next_wake": False}
    acks = [{"stream": "events/a", "offset": stream["tail_offset"]}]
    answer = await post(client, "ack", {**report, "acks": acks, "done": True}, lease["token"])
    assert answer.json == {"ok": True, "next_wake": False}
    assert code(await post(client, "ack", report, lease["token"])) == (409, "FENCED")
    (link,) = (await client.get(SUB)).json["streams"]
    assert link["acked_offset"] == stream["tail_offset"]


async def test_done_with_work_left_says_that_another_wake_follows(client: Client) -> None:
    lease = await claimed(client)
    report = {"wake_id": lease["wake_id"], "generation": lease["generation"], "done": True}
    assert (await post(client, "ack", report, lease["token"])).json == {"ok": True, "next_wake": True}
    again = (await post(client, "claim", {"worker": "you"})).json
    assert again["generation"] == lease["generation"] + 1
    assert again["wake_id"] != lease["wake_id"]


async def test_second_worker_is_told_who_holds_the_lease(client: Client) -> None:
    lease = await claimed(client)
    answer = await post(client, "claim", {"worker": "you"})
    assert code(answer) == (409, "ALREADY_CLAIMED")
    facts = answer.json["error"]
    assert (facts["current_holder"], facts["generation"]) == ("me", lease["generation"])


@pytest.mark.parametrize("token", ["", "x", "a.b", "eyJhbGciOiJub25lIn0.e30."])
@pytest.mark.parametrize("action", ["ack", "release"])
async def test_report_without_a_token_of_this_broker_moves_nothing(client: Client, action: str, token: str) -> None:
    lease = await claimed(client)
    report = {"wake_id": lease["wake_id"], "generation": lease["generation"], "done": True}
    answer = await post(client, action, report, token)
    assert code(answer) == (401, "TOKEN_INVALID")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert code(await post(client, "claim", {"worker": "you"})) == (409, "ALREADY_CLAIMED")


async def test_token_of_another_subscription_is_none_here(client: Client) -> None:
    lease = await claimed(client)
    other = "/v1/stream/__ds/subscriptions/sub-2"
    await put(client, PULL, other)
    report = {"wake_id": lease["wake_id"], "generation": lease["generation"]}
    assert code(await post(client, "ack", report, lease["token"], other)) == (401, "TOKEN_INVALID")


async def test_token_of_a_subscription_that_was_made_anew_is_none(client: Client) -> None:
    lease = await claimed(client)
    await client.send("DELETE", SUB)
    report = {"wake_id": lease["wake_id"], "generation": lease["generation"]}
    assert code(await post(client, "ack", report, lease["token"])) == (404, "SUBSCRIPTION_NOT_FOUND")
    await put(client, PULL)
    assert code(await post(client, "ack", report, lease["token"])) == (401, "TOKEN_INVALID")


async def test_token_runs_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOKEN_MS", 0)
    lease = await claimed(client)
    report = {"wake_id": lease["wake_id"], "generation": lease["generation"]}
    assert code(await post(client, "ack", report, lease["token"])) == (401, "TOKEN_EXPIRED")


@pytest.mark.parametrize(
    "body",
    [
        *[{}, {"wake_id": "w"}, {"wake_id": 1, "generation": 1}, {"wake_id": "w", "generation": "1"}],
        {"wake_id": "w", "generation": 1, "acks": {}},
        {"wake_id": "w", "generation": 1, "acks": [1]},
        {"wake_id": "w", "generation": 1, "acks": [{"stream": "a"}]},
        {"wake_id": "w", "generation": 1, "acks": [{"offset": "x"}]},
        {"wake_id": "w", "generation": 1, "done": "yes"},
    ],
)
async def test_report_that_makes_no_sense_is_refused(client: Client, body: Any) -> None:
    lease = await claimed(client)
    assert code(await post(client, "ack", body, lease["token"])) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("stream", "offset"),
    [
        ("events/a", "-1"),
        ("events/a", "now"),
        ("events/a", "rubbish"),
        ("events/a", f"{9:016x}_{1:016x}"),
        ("events/a", "beyond"),
        ("events/b", "tail"),
        ("", "tail"),
    ],
)
async def test_ack_of_an_offset_that_was_never_there_is_refused(client: Client, stream: str, offset: str) -> None:
    lease = await claimed(client)
    tail = lease["streams"][0]["tail_offset"]
    given = {"tail": tail, "beyond": f"{9:016x}_{tail.partition('_')[2]}"}.get(offset, offset)
    report = {"wake_id": lease["wake_id"], "generation": 1, "acks": [{"stream": stream, "offset": given}], "done": True}
    assert code(await post(client, "ack", report, lease["token"])) == (409, "INVALID_OFFSET")
    assert code(await post(client, "claim", {"worker": "you"})) == (409, "ALREADY_CLAIMED")


async def test_ack_that_goes_back_is_refused(client: Client) -> None:
    lease = await claimed(client)
    link = lease["streams"][0]
    for offset, status in ((link["tail_offset"], 200), (link["acked_offset"], 409)):
        acks = [{"stream": "events/a", "offset": offset}]
        report = {"wake_id": lease["wake_id"], "generation": 1, "acks": acks}
        assert (await post(client, "ack", report, lease["token"])).status == status


@pytest.mark.parametrize("worker", ["", "x" * 129, "a\nb", None, 1])
async def test_worker_needs_a_name(client: Client, worker: Any) -> None:
    await put(client, PULL)
    assert code(await post(client, "claim", {"worker": worker})) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("action", ["claim", "ack", "release"])
async def test_webhook_subscription_has_no_workers(client: Client, action: str) -> None:
    await put(client, HOOK)
    body = {"worker": "me", "wake_id": "w", "generation": 1}
    assert code(await post(client, action, body, "x")) == (400, "INVALID_REQUEST")


async def test_pull_wake_subscription_has_no_callback(client: Client) -> None:
    await put(client, PULL)
    assert code(await post(client, "callback", {"wake_id": "w", "generation": 1}, "x")) == (400, "INVALID_REQUEST")


async def test_status_tells_that_a_delivery_failed(client: Client) -> None:
    """PROTOCOL 6.3. Nobody listens where this webhook goes."""
    await put(client, HOOK)
    await client.put("/v1/stream/events/a", body=b'"one"')

    async def failed() -> bool:
        return bool((await client.get(SUB)).json["status"] == "failed")

    await eventually(failed)
    metrics = (await client.get("/metrics")).body.decode()
    assert "streamfold_wake_failures_total 1.0" in metrics
    assert "streamfold_subscriptions 1.0" in metrics
