"""NDJSON uploads as a test sends them, and what they have left in the session."""

import asyncio
import json
from typing import Any

from broker import App
from tests.broker.http.asgi import Client, Exchange
from tests.broker.http.session_requests import G

QUERY = "format=text"


class Upload(Exchange):
    """An upload under way: what the test says goes in when it says it."""

    def __init__(self, app: App, seq: int = 0, query: str = QUERY, target: str = G, **headers: str) -> None:
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        path = f"{target}/chunks"
        told = {"content_type": "application/x-ndjson", "producer_seq": str(seq), **headers}
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in told.items()]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": ""}
        super().__init__(app, {**scope, "query_string": query.encode(), "headers": raw}, [])
        self._begun = False
        self._rest = b""

    async def _receive(self) -> dict[str, Any]:
        return await self._said.get()

    def say(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        self._said.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def end(self) -> None:
        """End the body."""
        self.say(b"", more=False)

    def leave(self) -> None:
        """Close the connection."""
        self._said.put_nowait({"type": "http.disconnect"})

    async def line(self) -> Any:
        """The next line of the answer, None at its end."""
        if not self._begun:
            start = await self.next()
            assert (start["status"], dict(start["headers"])[b"content-type"]) == (200, b"application/x-ndjson")
            self._begun = True
        while b"\n" not in self._rest:
            message = await self.next()
            self._rest += message["body"]
            if not message.get("more_body"):
                assert not self._rest
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    async def ack(self, seq: int) -> Any:
        """The ack that says that `seq` is durable; those before it may have been left out."""
        while (line := await self.line())["seq"] < seq:
            pass
        assert line["seq"] == seq
        return line


async def chunks(client: Client) -> list[Any]:
    """All chunks in the session, in order."""
    records: list[Any] = (await client.get("/v1/stream/sessions/s")).json
    return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]


async def state(client: Client) -> Any:
    return (await client.get(G)).json
