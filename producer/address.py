"""Where things are: the targets of the session API. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlencode

__all__ = ["checked_id", "generation_target", "session_target", "with_query"]

_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")


def checked_id(name: str, value: str) -> str:
    """The id as it is. Raises ValueError if the broker would refuse it, or take it for another part of the path."""
    if not _ID.fullmatch(value) or value in {".", ".."}:
        raise ValueError(f"{name} must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and not '.' or '..': {value!r}")
    return value


def session_target(session_id: str) -> str:
    """The path of a session. Raises ValueError if the id is none."""
    return f"/v1/sessions/{checked_id('session_id', session_id)}"


def generation_target(session_id: str, generation_id: str) -> str:
    """The path of a generation. Raises ValueError if one of the ids is none."""
    return f"{session_target(session_id)}/generations/{checked_id('generation_id', generation_id)}"


def with_query(target: str, query: Mapping[str, str | None]) -> str:
    """The target with those parameters that are not None."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{target}?{urlencode(given)}" if given else target
