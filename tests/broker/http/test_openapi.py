"""The OpenAPI document and the broker say the same: everything that it allows is asked for, and more."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from broker.http.openapi import document
from broker.http.operations import OPERATIONS
from broker.http.session_routes import ROUTES
from tests.live import Broker

EXAMPLES = 15
APART = ".*(ui-stream|upload)$"  # one goes on for as long as an answer, the other is no HTTP

# What is asked for has to fit together, too.
MORE_THAN_A_SCHEMA_SAYS = ("/v1/sessions", "/v1/sessions/{sid}/fork", "/v1/sessions/{sid}/import")
# Besides being done: there is no such thing, or it has ended, or not now.
MEANS_NOTHING = ["2xx", "3xx", 403, 404, 409, 410, 429, 503, 504]

NO_BUG = ["2xx", "3xx", "4xx", 503, 504]

Parameters = dict[str, Any] | None

config = SchemathesisConfig.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {"expected-statuses": MEANS_NOTHING},
            "not_a_server_error": {"expected-statuses": NO_BUG},
        }
    }
)
schema = schemathesis.openapi.from_dict(document(), config=config)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker with a session or two."""
    folder: Path = tmp_path_factory.mktemp("openapi")
    broker = Broker(folder / "data", engine="memory")
    anyio.run(broker.start)
    try:
        for session in ("s1", "s2"):
            ask("PUT", f"{broker.url}/v1/sessions/{session}")
        yield broker.url
    finally:
        anyio.run(broker.kill)


def ask(method: str, url: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:  # noqa: S310 -- ours
        return json.loads(response.read())


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Parameters) -> Parameters:  # noqa: ARG001 -- the hook's own
    """Few ids, so that most requests meet what others made."""
    few = {"sid": ("s1", "s2", "s3"), "gid": ("g1", "g2", "g3", "g4"), "mid": ("m1", "g1"), "txid": ("t1", "t2")}
    return path_parameters and {
        name: few[name][len(str(value)) % len(few[name])] if name in few else value
        for name, value in path_parameters.items()
    }


@schemathesis.hook
def map_query(context: Any, query: Parameters) -> Parameters:  # noqa: ARG001 -- as above
    """Nobody waits for a txid."""
    return {**query, "timeoutMs": 0} if query and str(query.get("timeoutMs", "")).isdecimal() else query


@schema.exclude(path_regex=APART).parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_a_broker_answers_as_the_document_says(case: schemathesis.Case[Any], broker: str) -> None:
    if case.operation.path == "/v1/sessions" and case.query:
        case.query.pop("live", None)  # it would go on
    case.call_and_validate(
        base_url=broker,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
            *(() if case.operation.path in MORE_THAN_A_SCHEMA_SAYS else (positive_data_acceptance,)),
            missing_required_header,
            unsupported_method,
        ],
        timeout=10,
    )


def test_every_route_is_described_and_served(broker: str) -> None:
    assert set(OPERATIONS) == set(ROUTES)
    assert ask("GET", f"{broker}/openapi.json") == document()
