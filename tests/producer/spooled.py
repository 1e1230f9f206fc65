"""Applications that write to a spool while there is no network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from producer import Producer
from tests.producer.conftest import IMPATIENT
from tests.producer.model import ModelBroker

OFFLINE = "http://127.0.0.1:9"  # the port of discard; nobody listens
BRIEF = replace(IMPATIENT, finish_timeout_s=0.2)
"""Does not wait long for a broker that is not there."""


async def written_offline(path: Path, texts: list[str], *, ends: bool = True, **options: Any) -> None:
    """An application writes these, without a network, and is closed."""
    async with Producer(OFFLINE, limits=BRIEF, spool=path) as producer:
        generation = await producer.spooled("s", "g", format="text", **options).__aenter__()
        for text in texts:
            await generation.write(text)
        if ends:
            await generation.finish()


def whole(broker: ModelBroker, *generation_ids: str) -> str:
    """The text that readers have of these generations together."""
    return "".join(text for gid in generation_ids or ("g",) for text in broker.log("s", gid))
