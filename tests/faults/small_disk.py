"""A small disk: a file system of a few megabytes in a mount namespace of its own, that can really be full.

The namespace needs root, or a kernel that lets every user have one. It goes with the process that holds it.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.live import Broker

BALLAST = "ballast"
BALLAST_PIECE_BYTES = 64 * 1024


class NoNamespaceError(Exception):
    """This machine does not let us mount anything."""


class SmallDisk:
    """A mounted file system; `path` is valid inside its namespace only."""

    def __init__(self, path: Path, holder: "subprocess.Popen[bytes]", enter: list[str]) -> None:
        self.path = path
        self.enter = enter
        """What runs the rest of its arguments inside."""
        self._seen_from_here = Path(f"/proc/{holder.pid}/root") / path.relative_to("/")

    def fill(self, *, but_bytes: int = 0) -> None:
        """Leave no more free than that. What others free meanwhile is taken, too, when called again."""
        with (self._seen_from_here / BALLAST).open("ab", buffering=0) as ballast:
            for piece_bytes in (BALLAST_PIECE_BYTES, 4096, 1):
                fill_with(ballast, bytes(piece_bytes))
            ballast.truncate(ballast.tell() - but_bytes)

    def free(self) -> None:
        """Take away what `fill` wrote."""
        (self._seen_from_here / BALLAST).unlink()


def fill_with(ballast: IO[bytes], piece: bytes) -> None:
    try:
        while True:
            ballast.write(piece)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount one at `path`. Raises NoNamespaceError."""
    path.mkdir()
    is_root = os.geteuid() == 0
    spaces = ["--mount"] if is_root else ["--user", "--map-root-user", "--mount"]
    mount_and_hold = 'mount -t tmpfs -o size="$1" none "$0" && echo mounted && exec cat'
    command = ["unshare", *spaces, "sh", "-c", mount_and_hold, str(path), str(size_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        if holder.stdout is None or holder.stdout.readline() != b"mounted\n":
            raise NoNamespaceError(holder.communicate()[1].decode())
        inside = ["--mount"] if is_root else ["--user", "--preserve-credentials", "--mount"]
        try:
            yield SmallDisk(path, holder, ["nsenter", "--target", str(holder.pid), *inside, "--"])
        finally:
            holder.communicate()  # it ends with its standard input


class BrokerOnSmallDisk(Broker):
    """A broker whose data folder is on a small disk."""

    def __init__(self, disk: SmallDisk, log_path: Path) -> None:
        super().__init__(disk.path / "data")
        self.log_path = log_path
        self._disk = disk

    def _command(self) -> list[str]:
        return [*self._disk.enter, *super()._command()]
