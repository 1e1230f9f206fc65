"""The routes of the session API, in one table: what there is, and what a URL names.

Everything that has to know the routes reads them here: the API itself, `Allow` of a 405, the protocol page's test.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from broker import limits
from broker.http.problems import BadRequest
from consumer.wire import SESSION_PATH_PREFIX, Code

_ID: Final = re.compile(rf"[A-Za-z0-9._~:-]{{1,{limits.ID_CHARS_MAX}}}", re.ASCII)

_METHODS: Final = ("GET", "PUT", "POST", "DELETE")


class Route(NamedTuple):
    """A method and the URL template that takes it; `{…}` stands for an id."""

    method: str
    template: str


PREFIX: Final = "/v1/sessions/"

LIST: Final = "/v1/sessions"

ROUTES: Final = (
    Route("GET", LIST),
    Route("PUT", "/v1/sessions/{sid}"),
    Route("GET", "/v1/sessions/{sid}"),
    Route("DELETE", "/v1/sessions/{sid}"),
    Route("POST", "/v1/sessions/{sid}/reset"),
    Route("POST", "/v1/sessions/{sid}/fork"),
    Route("POST", "/v1/sessions/{sid}/import"),
    Route("POST", "/v1/sessions/{sid}/stop"),
    Route("POST", "/v1/sessions/{sid}/records"),
    Route("POST", "/v1/sessions/{sid}/chunks"),
    Route("POST", "/v1/sessions/{sid}/chunks/batch"),
    Route("POST", "/v1/sessions/{sid}/generations/finish"),
    Route("POST", "/v1/sessions/{sid}/messages"),
    Route("GET", "/v1/sessions/{sid}/messages"),
    Route("GET", "/v1/sessions/{sid}/messages/{mid}"),
    Route("PUT", "/v1/sessions/{sid}/generations/{gid}"),
    Route("POST", "/v1/sessions/{sid}/generations/{gid}/chunks"),
    Route("GET", "/v1/sessions/{sid}/generations/{gid}/upload"),
    Route("POST", "/v1/sessions/{sid}/generations/{gid}/finish"),
    Route("POST", "/v1/sessions/{sid}/generations/{gid}/heartbeat"),
    Route("POST", "/v1/sessions/{sid}/generations/{gid}/stop"),
    Route("GET", "/v1/sessions/{sid}/generations/{gid}"),
    Route("GET", "/v1/sessions/{sid}/txids/{txid}"),
    Route("GET", "/v1/sessions/{sid}/ui-stream"),
)


class Target(msgspec.Struct, frozen=True):
    """What a session URL names: the session, and what of it.

    Of a route's template, `part` is the first word behind the session id, `part_id` the id behind that word, and
    `action` the word behind either.
    """

    session_id: str
    part: str = ""
    part_id: str = ""
    action: str = ""

    @property
    def path(self) -> str:
        """The path of the session's stream."""
        return SESSION_PATH_PREFIX + self.session_id


@lru_cache(maxsize=limits.DECODED_PATHS_MAX)
def target_of(method: str, path: str) -> Target:
    """What `path`, the part behind `/v1/sessions/`, names for that method.

    Raises BadRequest: NOT_FOUND where no route has this shape, INVALID_PATH for an id that no client should use,
    METHOD_NOT_ALLOWED with an `Allow` header where a route has it for other methods.
    """
    segments = tuple(path.split("/"))
    fitting = [route for route in _routes_of_length.get(len(segments), ()) if _fits(_segments_of[route], segments)]
    if not fitting:
        raise BadRequest(Code.NOT_FOUND)
    chosen = next((route for route in fitting if route.method == method), fitting[0])
    target = _target(_segments_of[chosen], segments)
    if chosen.method != method:
        raise BadRequest(Code.METHOD_NOT_ALLOWED, headers=(_allow(fitting),))
    return target


def require_id(text: str, name: str, code: Code) -> None:
    """Raise BadRequest (`code`) for what is no id of a session, generation or message, and no lane."""
    if _ID.fullmatch(text) is None or text in {".", ".."}:
        raise BadRequest(code, f"{name}: 1 to {limits.ID_CHARS_MAX} characters of A-Z a-z 0-9 . _ ~ : -")


def _is_id(part: str) -> bool:
    return part.startswith("{")


_segments_of: Final = {
    route: tuple(route.template.removeprefix(PREFIX).split("/"))
    for route in ROUTES
    if route.template.startswith(PREFIX)
}

_routes_of_length: Final = {
    length: [route for route, segments in _segments_of.items() if len(segments) == length]
    for length in {len(segments) for segments in _segments_of.values()}
}


def _fits(template: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    return all(_is_id(part) or part == segment for part, segment in zip(template, segments, strict=True))


def _target(template: tuple[str, ...], segments: tuple[str, ...]) -> Target:
    require_id(segments[0], "session id", Code.INVALID_PATH)
    words: list[str] = []
    part_id = ""
    for part, segment in zip(template[1:], segments[1:], strict=True):
        if _is_id(part):
            require_id(segment, "id", Code.INVALID_PATH)
            part_id = segment
        else:
            words.append(segment)
    part, action = (*words, "", "")[:2]
    return Target(segments[0], part, part_id, action)


def _allow(fitting: list[Route]) -> tuple[bytes, bytes]:
    taken = {route.method for route in fitting}
    return (b"allow", ", ".join((*(method for method in _METHODS if method in taken), "OPTIONS")).encode())
