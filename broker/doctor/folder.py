"""A data folder as a whole: what is whole in it, what a broker would do with it, and what its operator can do."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from broker.data_dir import DataDir
from broker.doctor import journal, store
from broker.doctor.finding import Finding, Weight
from broker.errors import Damaged, DataDirInUse, NewerFormat, StartError
from broker.journal.cluster_record import decode_mark
from broker.journal.segments import Segments
from broker.limits import SEGMENT_BYTES
from broker.signing import private_keys
from broker.snapshot.form import name_of

_PARTITION: Final = re.compile(r"partition-(\d+)")
_COPY: Final = (
    "Restore the whole folder from a copy of it: store.sqlite with its -wal file and journal/ of one moment belong"
    " together."
)
_REBUILD: Final = (
    "The log of the cluster has all of it: stop the node, move store.sqlite and its -wal and -shm files out of the"
    " folder, and start it. It makes the store anew, which takes as long as reading the whole log."
)
_DISK: Final = "The disk, or whoever copied the folder, changed what was written: check it before you trust it again."


class Verdict(StrEnum):
    """What a folder is like, in a word."""

    HEALTHY = "healthy"  # all that was acknowledged is there and whole, and a broker would start
    DAMAGED = "damaged"
    IN_USE = "in use"  # a process has it, so nothing was looked at
    NEWER = "newer version"  # a newer version wrote it, so it cannot be judged here


class Examined(msgspec.Struct, rename="camel"):
    """What was found in one data folder.

    `facts` are what is there; `start` is what a broker would do with it, "" where that is not known; `advice` what its
    operator can do.
    """

    path: str
    verdict: Verdict = Verdict.HEALTHY
    facts: list[str] = msgspec.field(default_factory=list)
    findings: list[Finding] = msgspec.field(default_factory=list)
    start: str = ""
    advice: list[str] = msgspec.field(default_factory=list)


def examine(path: Path, *, thorough: bool = True, segment_bytes: int = SEGMENT_BYTES) -> list[Examined]:
    """The data folder at `path`; of a node of a cluster, the folder of each of its partitions.

    Raises StartError when there is no data folder, or it cannot be read.
    """
    try:
        partitions = sorted(folder for folder in path.iterdir() if _PARTITION.fullmatch(folder.name))
        if partitions:
            found = [_examine_locked(folder, thorough=thorough, segment_bytes=segment_bytes) for folder in partitions]
            return [*found, *_examine_nodes_key(DataDir(path))]
        if not DataDir(path).store_path.exists() and not DataDir(path).journal_path.exists():
            raise StartError(f"{path} holds nothing of a broker", "name the folder that --data-dir of `serve` names")
        return [_examine_locked(path, thorough=thorough, segment_bytes=segment_bytes)]
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}", "name a folder that this user can read") from error


def _examine_nodes_key(data_dir: DataDir) -> list[Examined]:
    """The key that webhooks are signed with lies beside the partitions; nothing where there is none."""
    path = data_dir.signing_key_path
    if not path.exists():
        return []
    found = Examined(str(path), start="signs webhooks with it, unless --signing-key names another one")
    try:
        private_keys(path.read_bytes(), path)
    except Damaged as error:
        found.verdict, found.start = Verdict.DAMAGED, f"refused: {error}"
        found.findings.append(Finding(weight=Weight.DAMAGE, file=path.name, what=f"{error}; {error.hint}"))
    else:
        found.facts.append("the key that webhooks are signed with")
    return [found]


@contextmanager
def looking(path: Path) -> Iterator[DataDir]:
    """The folder, with nobody else in it. Raises DataDirInUse and StartError."""
    data_dir = DataDir(path)
    data_dir.look()
    try:
        yield data_dir
    finally:
        data_dir.release()


def _examine_locked(path: Path, *, thorough: bool, segment_bytes: int) -> Examined:
    try:
        with looking(path) as data_dir:
            return _Examination(data_dir, segment_bytes).examined(thorough=thorough)
    except DataDirInUse as error:
        return Examined(str(path), Verdict.IN_USE, advice=[f"{error}: stop the broker, or look at a copy."])


class _Examination:
    """One look at a folder that nobody else has."""

    def __init__(self, data_dir: DataDir, segment_bytes: int) -> None:
        self._dir = data_dir
        self._segment_bytes = segment_bytes
        self._found = Examined(str(data_dir.path))
        self._store = store.Examined()
        self._journal: journal.Examined | None = None

    def examined(self, *, thorough: bool) -> Examined:
        self._examine_store(thorough=thorough)
        self._examine_journal()
        self._examine_key()
        self._examine_left_overs()
        refusal = self._refusal()
        self._found.start = self._told_start(refusal)
        self._found.verdict = self._verdict(refusal)
        self._found.advice = self._advice(refusal)
        return self._found

    # -- parts -------------------------------------------------------------------------------------------------------

    def _examine_store(self, *, thorough: bool) -> None:
        path, found = self._dir.store_path, self._found
        if not path.exists() and self._begins_without_store:
            found.facts.append(f"there is no {path.name} yet")
            return
        if not path.exists():
            what = "it is missing beside its journal"
            self._store.refusal = Damaged(f"{path.name} is missing beside {self._dir.journal_path.name}")
            found.findings.append(Finding(weight=Weight.DAMAGE, file=path.name, what=what))
            return
        self._store = examined = store.examine(path, thorough=thorough)
        found.findings += examined.findings
        if examined.head is None:
            return
        head = examined.head
        counted = f": {examined.streams} streams, {examined.sessions} sessions, {examined.rows} rows"
        pages = f", {examined.pages} pages with {examined.data_bytes} bytes of records"
        told = counted + pages if thorough else " (rows and pages were not read)"
        found.facts.append(
            f"{path.name} has what was applied up to index {head.applied_index}, {_time(head.time_ms)}{told}"
        )
        self._examine_mark(head.mark)

    def _examine_mark(self, mark: bytes) -> None:
        """Where in a cluster's log the store stands."""
        partition = _PARTITION.fullmatch(self._dir.path.name)
        if not mark:
            if partition is not None and self._store.head is not None and self._store.head.applied_index:
                self._add_damage(self._dir.store_path.name, "it does not say where in the log of the cluster it stands")
            return
        try:
            facts = decode_mark(mark)
        except msgspec.MsgspecError as error:
            self._add_damage(self._dir.store_path.name, f"its mark cannot be decoded: {error}")
            return
        self._found.facts.append(
            f"it is of a cluster: partition {facts.meta.partition} of {facts.meta.partitions}, at position"
            f" {facts.position}"
        )
        if partition is not None and int(partition[1]) != facts.meta.partition:
            self._add_damage(self._dir.store_path.name, f"it is that of partition {facts.meta.partition}")
        if self._dir.journal_path.exists():
            self._add_damage(self._dir.journal_path.name, "a cluster's store has no journal beside it")

    def _examine_journal(self) -> None:
        folder, head = self._dir.journal_path, self._store.head
        if not folder.is_dir():
            return
        self._journal = examined = journal.examine(
            folder,
            self._store.uuid,
            head.applied_index if head else None,
            segment_bytes=self._segment_bytes,
        )
        self._found.findings += examined.findings
        newest = f", the newest entry at index {examined.next_index - 1}, {_time(examined.time_ms)}"
        closed = "closed in order" if examined.is_closed else "not closed: its broker was killed, or lost its power"
        self._found.facts.append(
            f"{folder.name} has {examined.segments} segments and {examined.spares} spares: {examined.commits} whole"
            f" commits{newest if examined.commits else ''}; {closed}"
        )

    def _examine_key(self) -> None:
        path = self._dir.signing_key_path
        if not path.exists():
            return
        try:
            private_keys(path.read_bytes(), path)
        except Damaged as error:
            self._add_damage(path.name, f"{error}; {error.hint}")

    def _examine_left_overs(self) -> None:
        reason = self._dir.quarantine_reason
        if reason:
            what = f"the store was found to be wrong ({reason}); the next start sets it aside and makes a new one"
            self._found.findings.append(Finding(weight=Weight.WARNING, file=self._dir.store_path.name, what=what))
        if self._dir.begun_with:
            self._found.facts.append(f"begun-with: the store was begun with {_snapshot(self._dir.begun_with)}")
        copy = self._dir.snapshot_path
        if copy.exists():
            what = (
                "a store on its way to or from the snapshots of the cluster, left by a node that was killed meanwhile;"
                " the next start with --snapshot-dir removes it"
            )
            self._found.findings.append(Finding(weight=Weight.NOTE, file=copy.name, what=what))
        for aside in sorted(self._dir.path.glob("set-aside-*")):
            self._found.facts.append(_told_aside(aside))

    def _add_damage(self, file: str, what: str) -> None:
        self._found.findings.append(Finding(weight=Weight.DAMAGE, file=file, what=what))

    # -- as a whole --------------------------------------------------------------------------------------------------

    @property
    def _is_clusters(self) -> bool:
        return _PARTITION.fullmatch(self._dir.path.name) is not None or bool(self._store.head and self._store.head.mark)

    @property
    def _begins_without_store(self) -> bool:
        """A node was killed before its first checkpoint, or between two stores: the cluster has all of it."""
        return _PARTITION.fullmatch(self._dir.path.name) is not None and not self._dir.journal_path.exists()

    def _refusal(self) -> StartError | None:
        """Why a broker would not start; found by the very steps of a start, but for those that write."""
        if self._dir.quarantine_reason:  # it begins without this store
            return None
        if not self._dir.store_path.exists() and self._begins_without_store:
            return None
        if self._store.refusal is not None:
            return self._store.refusal
        head, uuid = self._store.head, self._store.uuid
        if head is None or uuid is None:
            return Damaged(f"{self._dir.store_path.name} cannot be read")
        if self._is_clusters:
            return None
        if head.mark:
            return Damaged("the store was made by another engine")
        try:
            self._replayed(head.applied_index, uuid)
            if self._dir.signing_key_path.exists():
                private_keys(self._dir.signing_key_path.read_bytes(), self._dir.signing_key_path)
        except StartError as error:
            return error
        return None

    def _replayed(self, applied_index: int, uuid: bytes) -> None:
        segments = Segments(self._dir.journal_path, uuid, segment_bytes=self._segment_bytes)
        segments.look(applied_index)
        for _ in segments.commits(applied_index + 1):
            pass

    def _verdict(self, refusal: StartError | None) -> Verdict:
        weights = {finding.weight for finding in self._found.findings}
        if Weight.DAMAGE in weights or (refusal is not None and not isinstance(refusal, NewerFormat)):
            return Verdict.DAMAGED
        if Weight.NEWER in weights or refusal is not None:
            return Verdict.NEWER
        return Verdict.HEALTHY

    def _told_start(self, refusal: StartError | None) -> str:
        if refusal is not None:
            return f"refused: {refusal}"
        if self._dir.quarantine_reason:
            return "sets this store aside and makes a new one from the log of the cluster"
        if not self._dir.store_path.exists():
            return "makes a store from the newest snapshot of the cluster, or from all of its log"
        head = self._store.head
        index = head.applied_index if head else 0
        if self._is_clusters:
            told = f"goes on behind index {index} with what the log of the cluster has beyond it"
        else:
            count = (self._journal.good_index if self._journal else index + 1) - index - 1
            told = f"goes on behind index {index}: {count} entries of the journal are applied"
        if not self._store.is_whole:
            told += "; what is damaged in the store shows only when it is read, and may stop the engine then"
        return told

    def _advice(self, refusal: StartError | None) -> list[str]:
        if self._found.verdict is Verdict.NEWER:
            return ["Start the version that wrote it, or a newer one."]
        weights = {finding.weight for finding in self._found.findings}
        if self._found.verdict is Verdict.HEALTHY:
            return [f"{_DISK} Nothing of it is needed any more."] if Weight.WARNING in weights else []
        if self._is_clusters:
            return [_REBUILD, _DISK]
        return [*self._salvage_advice(refusal), _COPY, _DISK]

    def _salvage_advice(self, refusal: StartError | None) -> list[str]:
        examined, head = self._journal, self._store.head
        if head is None or not self._store.is_whole:
            return []
        good_index = examined.good_index if examined else head.applied_index + 1
        if examined is None or examined.next_index <= good_index:
            lost = "as far as can be told, nothing is lost"
        else:
            lost = f"what came later, up to index {examined.next_index - 1} at least, was acknowledged and is lost"
        does = f"`streamfold doctor {self._found.path} --salvage OUT` makes a new folder"
        return [f"{does} of everything up to index {good_index - 1}; {lost}."] if refusal else []


def _snapshot(text: str) -> str:
    """A snapshot for people, by its name."""
    name = name_of(text)
    return text if name is None else f"the snapshot {text}, which ends at position {name.position}"


def _told_aside(folder: Path) -> str:
    """What a store that was set aside is, as far as it can be told."""
    aside, why = DataDir(folder), folder / "why"
    told = f"{folder.name} is a store that was set aside; a broker has no use for it"
    if why.exists():
        told += f"; it was found to be wrong: {why.read_text(encoding='utf-8', errors='replace').strip()}"
    if aside.begun_with:
        told += f"; it was begun with {_snapshot(aside.begun_with)}, which is not used again"
    return told


def _time(time_ms: int) -> str:
    """A time for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ms / 1000)) if time_ms else "no time yet"
    except (ValueError, OverflowError, OSError):
        return f"at {time_ms} ms"


__all__ = ["Examined", "Verdict", "examine", "looking"]
