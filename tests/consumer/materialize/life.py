"""A life of `streamfold materialize` in a process of its own, begun quickly, ended by SIGKILL."""

import multiprocessing
import sys
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Self
from unittest import mock

# Its modules are loaded once, in a server from which each life is forked.
_lives = multiprocessing.get_context("forkserver")
_lives.set_forkserver_preload(["consumer.materialize.command", "consumer.materialize.postgres"])

END_WAIT_S_MAX = 30.0


def _live(arguments: list[str]) -> None:
    from consumer.materialize.command import materialize  # noqa: PLC0415  the test process has no use for it

    materialize.main(arguments)


class Life:
    """From entering to leaving, at the latest."""

    def __init__(self, *arguments: str) -> None:
        self._process: BaseProcess = _lives.Process(target=_live, args=(list(arguments),))

    def __enter__(self) -> Self:
        # Each process would otherwise begin by importing the program that runs the tests.
        with mock.patch.multiple(sys.modules["__main__"], create=True, __file__=None, __spec__=None):
            self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        with suppress(ValueError):
            self._process.kill()
            self._process.join(END_WAIT_S_MAX)

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def exit_status(self) -> int | None:
        """When it has ended by itself; None if it does not."""
        self._process.join(END_WAIT_S_MAX)
        return self._process.exitcode
