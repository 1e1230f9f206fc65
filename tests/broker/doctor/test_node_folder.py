"""broker/doctor: a folder of a node of a cluster is looked at partition by partition."""

from pathlib import Path

from broker.data_dir import DataDir
from broker.doctor.finding import Weight
from broker.doctor.folder import Verdict, examine
from broker.journal.cluster_record import Mark, Meta, encode_mark
from broker.snapshot.form import Name
from broker.store import Checkpoint, Head
from broker.store.sqlite import SqliteStore

SNAPSHOT = str(Name(30, bytes(16), 5))


async def node(folder: Path, partition: int) -> None:
    mark = encode_mark(Mark(Meta(bytes(16), partition, 2), 40, b"", b"", 1))
    store = SqliteStore(DataDir(folder))
    await store.open()
    await store.write(Checkpoint(Head(7, 1_000, mark), {}, [], []))
    await store.aclose()


async def test_stores_of_a_node_are_each_looked_at_and_say_where_they_stand(tmp_path: Path) -> None:
    for partition in range(2):
        await node(tmp_path / f"partition-{partition}", partition)
    found = examine(tmp_path)
    assert [folder.verdict for folder in found] == [Verdict.HEALTHY] * 2
    assert "partition 1 of 2, at position 40" in found[1].facts[1]


async def test_damaged_store_of_a_node_is_to_be_made_anew_from_the_log(tmp_path: Path) -> None:
    await node(tmp_path / "partition-0", 1)
    (found,) = examine(tmp_path)
    assert found.verdict is Verdict.DAMAGED
    assert "The log of the cluster has all of it" in found.advice[0]


async def test_quarantined_store_of_a_node_is_told_with_its_reason(tmp_path: Path) -> None:
    await node(tmp_path / "partition-0", 0)
    DataDir(tmp_path / "partition-0").quarantine("it differs")
    (found,) = examine(tmp_path)
    assert "it differs" in found.findings[0].what
    assert "makes a new one" in found.start


async def test_files_that_only_a_node_of_a_cluster_keeps_are_explained(tmp_path: Path) -> None:
    folder = tmp_path / "partition-0"
    await node(folder, 0)
    DataDir(folder).begin_with(SNAPSHOT)
    DataDir(folder).snapshot_path.write_bytes(b"half of a store")
    (found,) = examine(tmp_path)
    assert found.verdict is Verdict.HEALTHY
    assert f"begun with the snapshot {SNAPSHOT}, which ends at position 30" in found.facts[-1]
    assert [(finding.weight, finding.file) for finding in found.findings] == [(Weight.NOTE, "snapshot.sqlite")]
    assert "the next start with --snapshot-dir removes it" in found.findings[0].what


async def test_node_that_was_killed_between_two_stores_is_healthy_and_what_it_set_aside_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "partition-0"
    await node(folder, 0)
    DataDir(folder).begin_with(SNAPSHOT)
    DataDir(folder).quarantine("it differs")
    taken = DataDir(folder)
    taken.take()
    taken.release()
    (found,) = examine(tmp_path)
    assert found.verdict is Verdict.HEALTHY
    assert "makes a store from the newest snapshot" in found.start
    assert "it was found to be wrong: it differs" in found.facts[-1]
    assert f"begun with the snapshot {SNAPSHOT}" in found.facts[-1]


async def test_damaged_key_beside_the_partitions_of_a_node_is_told(tmp_path: Path) -> None:
    await node(tmp_path / "partition-0", 0)
    DataDir(tmp_path).signing_key_path.write_text("no key", encoding="ascii")
    assert [found.verdict for found in examine(tmp_path)] == [Verdict.HEALTHY, Verdict.DAMAGED]
