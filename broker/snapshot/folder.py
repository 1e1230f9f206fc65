"""A folder that all nodes reach, on a disk that outlives them: NFS, a mounted bucket, or of one machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from broker import limits
from broker.data_dir import sync_folder

_PART: Final = ".part"
_STALE_S: Final = 24 * 3600.0
"""Older than any snapshot takes: whoever began it is gone."""


class Folder:
    """A `Place`. What is being written has another name until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        """As in `Place`."""
        try:
            return [path.name for path in self._path.iterdir() if path.suffix != _PART]
        except FileNotFoundError:
            return []

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """As in `Place`."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._sweep()
        part = self._path / f"{name}{_PART}"
        try:
            with part.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path / name)
            sync_folder(self._path)
        finally:
            part.unlink(missing_ok=True)

    def read(self, name: str) -> Iterator[bytes]:
        """As in `Place`."""
        with (self._path / name).open("rb") as file:
            while piece := file.read(limits.SNAPSHOT_PIECE_BYTES):
                yield piece

    def remove(self, name: str) -> None:
        """As in `Place`."""
        (self._path / name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """What somebody began to write and did not live to finish."""
        for path in self._path.glob(f"*{_PART}"):
            if path.stat().st_mtime < time.time() - _STALE_S:
                path.unlink(missing_ok=True)
