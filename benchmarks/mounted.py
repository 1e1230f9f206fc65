"""The broker as a part of somebody's service: mounted under a prefix, in a uvicorn with the settings of `bare`."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from broker.app import create_app
from broker.settings import Settings

PREFIX: Final = "/chat"


def service(data_dir: Path) -> Starlette:
    """Somebody's service."""
    broker = create_app(Settings(data_dir=data_dir))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        async with broker.running():
            yield

    return Starlette(routes=[Mount(PREFIX, broker)], lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(
        service(Path(sys.argv[2])),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
