"""`python -m benchmarks.viewer URL SESSION`: a person who looks at a session, as a process of its own.

A line of JSON for every change that a `SessionView` shows; its time is of the clock that all processes here share.
"""

from __future__ import annotations

import sys
import time
from contextlib import aclosing

import anyio
import msgspec

from consumer import SessionView


class Sight(msgspec.Struct):
    """One message as it was shown."""

    at_s: float
    message_id: str
    tokens: int
    """Characters: a token is one here."""
    status: str


async def look(url: str, session: str) -> None:
    """Tell what is seen, until the session is gone."""
    async with SessionView(url, session) as view, aclosing(view.follow()) as changes:
        async for change in changes:
            at_s = time.monotonic()
            for item in change.messages:
                tokens = sum(len(part.get("text", "")) for part in item["message"]["parts"])
                print(msgspec.json.encode(Sight(at_s, item["id"], tokens, item["status"])).decode())
            if change.up_to_date:
                print(msgspec.json.encode(Sight(at_s, "", 0, "")).decode())
            sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(look, sys.argv[1], sys.argv[2])
