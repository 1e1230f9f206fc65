"""`/openapi.json`: the session API as an OpenAPI 3.1 document.

Made from the route table, the operations, the error codes and their statuses, and the bounds, so that none of them is
said twice. A test asks a broker everything that the document allows, and more, and holds its answers to it.

Streams are the Durable Streams protocol's and described there: OpenAPI has no word for a path with slashes in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from broker.http import session_types as t
from broker.http.operations import ADMIN, OPERATIONS, Operation, Parameter, Schema
from broker.http.problems import standing_of
from broker.http.session_routes import ROUTES, Route
from consumer.wire import JSON, PROBLEM_JSON, Code, Problem

_ALWAYS: Final = (
    Code.INVALID_PATH,
    Code.INVALID_PARAMETER,
    Code.INVALID_HEADER,
    Code.OVERLOADED,
    Code.UNAVAILABLE,
    Code.ENGINE_STOPPED,
    Code.INTERNAL,
)
_WITH_BODY: Final = (
    Code.INVALID_JSON,
    Code.INVALID_BODY,
    Code.EMPTY_BODY,
    Code.EMPTY_ARRAY,
    Code.INVALID_CONTENT_TYPE,
    Code.BODY_TOO_LARGE,
    Code.UNSUPPORTED_CODING,
)


def routes() -> list[StarletteRoute]:
    """`GET /openapi.json`."""
    told = msgspec.json.encode(document())

    async def read(_request: Request) -> Response:
        return Response(told, media_type=JSON, headers={"cache-control": "no-cache"})

    return [StarletteRoute("/openapi.json", read)]


def document() -> Schema:
    """The document, as plain data."""
    operations = {**OPERATIONS, **ADMIN}
    assert set(OPERATIONS) == set(ROUTES), "every route is described, and nothing else"
    told = [told for operation in operations.values() for told in (*operation.answers.values(), operation.body)]
    types = sorted({each for each in told if isinstance(each, type)}, key=lambda each: each.__name__)
    _, schemas = msgspec.json.schema_components([Problem, *types], ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Schema]] = {}
    for route, operation in operations.items():
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Streamfold: sessions",
            "version": version("streamfold"),
            "summary": "A durable log for AI answers, and the messages that fold from it.",
            "description": "A session is also a stream, `/v1/stream/sessions/{sid}`: see the Durable Streams protocol.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas, "responses": {"Problem": _problem("Refused.")}},
    }


def _operation(route: Route, operation: Operation) -> Schema:
    told: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(route), *map(_parameter, operation.parameters)],
        "responses": {
            **{str(status): _answer(status, body) for status, body in operation.answers.items()},
            **_refusals(operation),
        },
    }
    if operation.body is not None:
        schema = operation.body if isinstance(operation.body, dict) else _ref(operation.body)
        told["requestBody"] = {"required": operation.body_required, "content": {JSON: {"schema": schema}}}
    return told


def _path_parameters(route: Route) -> list[Schema]:
    names = [part[1:-1] for part in route.template.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(t.Id)} for name in names]


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _answer(status: int, body: type | None) -> Schema:
    told: Schema = {"description": HTTPStatus(status).phrase}
    if body is not None:
        told["content"] = {JSON: {"schema": _ref(body)}}
    return told


def _refusals(operation: Operation) -> dict[str, Schema]:
    """The codes of an operation, by the status that they have in HTTP."""
    codes: Sequence[Code] = (*operation.codes, *_ALWAYS, *(_WITH_BODY if operation.body is not None else ()))
    by_status: dict[int, list[Code]] = {}
    for code in codes:
        by_status.setdefault(standing_of[code].status, []).append(code)
    return {
        str(status): _problem("; ".join(f"`{code}`: {standing_of[code].title}" for code in by_status[status]))
        for status in sorted(by_status)
    }


def _problem(description: str) -> Schema:
    return {"description": description, "content": {PROBLEM_JSON: {"schema": _ref(Problem)}}}


def _ref(told: type) -> Schema:
    return {"$ref": f"#/components/schemas/{told.__name__}"}
