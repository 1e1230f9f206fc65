"""Prometheus metrics: the plain numbers that the parts keep anyway, read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.core.entry import Kind
from broker.core.outcome import Result
from broker.http.bodies import Bodies
from broker.http.compression import Compression
from broker.http.traffic import Traffic
from broker.http.uploads import Uploads
from broker.materializer import Materializer
from broker.partitions import Partitioned
from broker.snapshot.maker import SnapshotMaker
from broker.waker import Waker
from consumer.wire import Code

_OF_SESSION: Final = range(Kind.SESSION_CREATE, Kind.SUBSCRIPTION_CREATE)
_LOST_A_RACE: Final = frozenset(
    {
        Code.FENCED.value,
        Code.LANE_BUSY.value,
        Code.GENERATION_MISMATCH.value,
        Code.SESSION_NOT_FOUND.value,
        Code.SESSION_EXISTS.value,
    }
)
"""Refusals of what was right when it was sent, as its sender saw the session."""
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Collector):
    """The metrics of one broker, in a registry of their own: two brokers may share a process."""

    def __init__(
        self,
        partition: Partitioned,
        materializer: Materializer,
        waker: Waker,
        traffic: Traffic,
        bodies: Bodies,
        uploads: Uploads,
        compression: Compression,
        snapshots: Sequence[SnapshotMaker] = (),
    ) -> None:
        self._partition = partition
        self._materializer = materializer
        self._waker = waker
        self._traffic = traffic
        self._bodies = bodies
        self._uploads = uploads
        self._compression = compression
        self._snapshots = snapshots
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def exposition(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """As the registry asks for them."""
        yield from self._of_partition()
        yield from self._of_lifecycle()
        yield from self._of_subscriptions()
        yield from self._of_http()
        yield from self._of_compression()
        yield from self._of_uploads()
        yield from self._of_snapshots()
        yield _counter("records_folded", "Records folded into messages.", self._materializer.records_folded)
        yield _gauge("folded_sessions", "Sessions whose messages are in memory.", self._materializer.sessions)
        yield _gauge("folded_session_bytes", "What their messages take, about.", self._materializer.size_bytes)

    def _of_partition(self) -> Iterator[Metric]:
        partition, counts = self._partition, self._partition.counts
        entries = CounterMetricFamily("streamfold_entries", "Entries by kind and result.", labels=["kind", "result"])
        for (kind, result), count in list(counts.outcomes.items()):
            entries.add_metric([Kind(kind).name.lower(), result], count)
        yield entries
        yield _counter("appended_records", "Records appended.", counts.appended_records)
        yield _counter("appended_bytes", "Bytes of data appended.", counts.appended_bytes)
        yield _counter("commits", "Commits applied.", counts.commits)
        yield _counter("checkpoints", "Checkpoints written.", counts.checkpoints)
        yield _counter("checkpoint_failures", "Checkpoints that could not be written.", counts.checkpoint_failures)
        yield _counter(
            "answered_without_journal",
            "Refusals and duplicates that were certain without the journal.",
            counts.answered_without_journal,
        )
        yield _gauge("in_flight_entries", "Entries proposed and not yet applied.", partition.in_flight)
        yield _gauge("unstored_bytes", "Bytes applied and not yet in the store.", partition.unstored_bytes)
        yield _gauge("applied_index", "Index of the newest applied entry.", partition.applied_index)
        yield _gauge("synchronous_commits", "1 while every write has a commit of its own.", partition.synchronous)
        yield _gauge("lag_seconds", "Time for which what others wrote has not all been applied.", partition.lag_s)
        events = CounterMetricFamily("streamfold_journal_events", "What happened to the journal.", labels=["event"])
        for event, count in partition.journal_events.items():
            events.add_metric([event], count)
        yield events
        yield _gauge("healthy", "1 while the engine acknowledges.", partition.healthy)

    def _of_lifecycle(self) -> Iterator[Metric]:
        races = CounterMetricFamily(
            "streamfold_lifecycle_races_refused",
            "Entries for a session that came too late, or to a lane that another one has.",
            labels=["kind", "code"],
        )
        for (kind, result), count in list(self._partition.counts.outcomes.items()):
            if kind in _OF_SESSION and result in _LOST_A_RACE:
                races.add_metric([Kind(kind).name.lower(), result], count)
        yield races

    def _of_subscriptions(self) -> Iterator[Metric]:
        partition, counts = self._partition, self._waker.counts
        outcomes = partition.counts.outcomes
        claims = outcomes[Kind.SUBSCRIPTION_CLAIM, Result.ACCEPTED.name.lower()]
        fenced_acks = outcomes[Kind.SUBSCRIPTION_ACK, Code.FENCED.value]
        yield _gauge("subscriptions", "Subscriptions.", len(partition.subscriptions))
        yield _counter("wake_attempts", "Attempts to deliver a wake.", counts.attempts)
        yield _counter("wake_failures", "Attempts that failed.", counts.failures)
        yield _counter("claims", "Wakes that a worker has claimed.", claims)
        yield _counter("fenced_acks", "Acks of wakes that were over.", fenced_acks)
        yield _counter("links_refused", "Streams that no subscription had room for.", counts.links_refused)

    def _of_http(self) -> Iterator[Metric]:
        responses = CounterMetricFamily("streamfold_responses", "Responses by class of status.", labels=["status"])
        for status, count in self._traffic.responses.items():
            responses.add_metric([status], count)
        yield responses
        live = GaugeMetricFamily("streamfold_live_readers", "Readers that wait, by mode.", labels=["mode"])
        for mode, count in self._traffic.live.counts.items():
            live.add_metric([mode], count)
        yield live
        yield _counter("inflated_bytes", "Bytes that compressed bodies have become.", self._bodies.inflated_bytes)
        yield _counter("unexpected_errors", "Requests that ran into a bug.", self._traffic.bugs)

    def _of_compression(self) -> Iterator[Metric]:
        responses = CounterMetricFamily("streamfold_coded_responses", "Responses sent compressed.", labels=["coding"])
        plain = CounterMetricFamily("streamfold_coded_plain_bytes", "Bytes of these before.", labels=["coding"])
        sent = CounterMetricFamily("streamfold_coded_bytes", "Bytes of these as sent.", labels=["coding"])
        for coding, coded in self._compression.coded.items():
            label = [coding.decode()]
            responses.add_metric(label, coded.responses)
            plain.add_metric(label, coded.plain_bytes)
            sent.add_metric(label, coded.coded_bytes)
        yield from (responses, plain, sent)
        busy = "Responses sent plain because too many were being compressed."
        yield _counter("coders_busy", busy, self._compression.left_plain)

    def _of_uploads(self) -> Iterator[Metric]:
        uploads = self._uploads
        begun = CounterMetricFamily("streamfold_uploads_begun", "Uploads, by the way they came in.", labels=["mode"])
        opened = GaugeMetricFamily("streamfold_uploads", "Uploads in progress.", labels=["mode"])
        now = uploads.open
        for mode, count in uploads.begun.items():
            begun.add_metric([mode], count)
            opened.add_metric([mode], now[mode])
        yield begun
        yield opened
        acks = uploads.async_acks
        yield _counter("async_batches", "Batches answered before they were durable.", acks.accepted)
        yield _counter("async_batches_lost", "Of these, batches that did not become durable.", acks.lost)
        yield _counter("upload_batches", "Batches of uploads that are durable, copies included.", uploads.batches)
        yield _counter("upload_refusals", "Uploads that a refused batch ended.", uploads.refusals)
        yield _gauge("upload_batches_in_flight", "Batches of uploads not yet durable.", uploads.in_flight)

    def _of_snapshots(self) -> Iterator[Metric]:
        """Of a cluster's partitions; nothing where there is no place for them."""
        makers = self._snapshots
        if not makers:
            return
        age = GaugeMetricFamily("streamfold_snapshot_age_seconds", "Of the newest snapshot.", labels=["partition"])
        size = GaugeMetricFamily("streamfold_snapshot_bytes", "The store in it.", labels=["partition"])
        behind = GaugeMetricFamily("streamfold_snapshot_log_bytes", "Log behind it.", labels=["partition"])
        for number, maker in enumerate(makers):
            behind.add_metric([str(number)], maker.behind_bytes)
            if maker.newest is not None and maker.age_s is not None:
                age.add_metric([str(number)], maker.age_s)
                size.add_metric([str(number)], maker.newest.size_bytes)
        yield from (age, size, behind)
        yield _counter("snapshots", "Snapshots made.", sum(maker.counts.made for maker in makers))
        yield _counter("snapshot_failures", "Snapshots not made.", sum(maker.counts.failures for maker in makers))
        yield _counter("snapshots_damaged", "Snapshots found unusable.", sum(maker.damaged for maker in makers))
        yield _counter("log_trims", "Trims of the log.", sum(maker.counts.trims for maker in makers))
        last_s = max(maker.counts.last_s for maker in makers)
        yield _gauge("snapshot_seconds", "What the slowest of the last ones took.", last_s)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"streamfold_{name}", meaning, value)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"streamfold_{name}", meaning, value)
