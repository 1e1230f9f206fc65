"""A module of the tests as a program of its own: it says lines, may be told some, and can be killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread


@contextmanager
def program(module: str, *arguments: object, enter: tuple[str, ...] = ()) -> Iterator[Any]:
    """Run `python -m module`, behind the command `enter` if there is one; it is killed when the context is left."""
    command = [*enter, sys.executable, "-m", module, *map(str, arguments)]
    here, pipe = Path(__file__).parents[1], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=here) as process:
        try:
            yield process
        finally:
            process.kill()


async def next_line(process: Any) -> str:
    """What it says next. It has not ended."""
    line: str = await anyio.to_thread.run_sync(process.stdout.readline)
    assert line, "the program has ended"
    return line.strip()
