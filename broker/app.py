"""The application: the only place that puts concrete parts together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from broker.data_dir import DataDir
from broker.errors import EngineStopped, StartError
from broker.http import admin, openapi, session_api, session_list, status, stream_api, subscription_api
from broker.http.append_endpoint import AppendEndpoint, Application
from broker.http.async_acks import AsyncAcks
from broker.http.bodies import Bodies
from broker.http.compression import Compression
from broker.http.endpoint import Endpoint
from broker.http.fast_path import FastAppends
from broker.http.fast_reads import FastReads
from broker.http.framework import Framework
from broker.http.freshness import fresh
from broker.http.live_readers import LiveReaders
from broker.http.ndjson import NdjsonEndpoint
from broker.http.request import Receive, Request, Scope, raw_path_of
from broker.http.response import Send
from broker.http.session_api import SessionApi
from broker.http.session_list import SessionList
from broker.http.stream_api import StreamApi
from broker.http.subscription_answers import error_form
from broker.http.subscription_api import SubscriptionApi
from broker.http.traffic import Traffic
from broker.http.uploads import Uploads
from broker.http.websocket import WebSocketEndpoint
from broker.journal import Journal
from broker.journal.cluster import ClusterJournal
from broker.journal.file import FileJournal
from broker.journal.memory import MemoryJournal
from broker.journal.shared_log import SharedLog
from broker.materializer import Materializer
from broker.metrics import CONTENT_TYPE, Metrics
from broker.partition import Partition
from broker.partitions import Partitioned, Partitions
from broker.settings import Settings
from broker.signing import Signing
from broker.snapshot.folder import Folder
from broker.snapshot.maker import SnapshotMaker
from broker.snapshot.restore import Restorer
from broker.snapshot.shelf import Shelf
from broker.store.sqlite import SqliteStore
from broker.sweeper import Sweeper
from broker.waker import Waker
from broker.webhooks import Webhooks
from consumer.wire import SESSION_PATH_PREFIX

log = logging.getLogger("streamfold.app")

_REVIVE_S: Final = 1.0
"""Pause before a background task that failed is started again."""


class App:
    """A broker as an ASGI application.

    It runs while its lifespan does. A framework that mounts it under a prefix does not pass the lifespan on: enter
    `running` in that framework's own.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._drained_by: float | None = None  # by the event loop's clock
        self.partition, self._snapshots = _partitioned(settings)
        self.materializer = Materializer(self.partition)
        self._sweeper = Sweeper(self.partition, unused_session_s=settings.unused_session_s)
        self._signing = signing = _signing(settings)
        self._webhooks = webhooks = Webhooks(signing, local=settings.is_local)
        self._waker = waker = Waker(self.partition, signing, webhooks)
        self.live = live = LiveReaders(settings.live_readers_max)
        traffic = Traffic(live)
        bodies = Bodies(settings.body_bytes_max)
        async_acks = AsyncAcks(self.partition, is_allowed=settings.async_acks)
        self.uploads = uploads = Uploads(self.partition, traffic, async_acks)
        compression = Compression()
        metrics = Metrics(
            self.partition, self.materializer, waker, traffic, bodies, uploads, compression, self._snapshots
        )
        streams = StreamApi(self.partition, settings, bodies, live)
        sessions = SessionApi(self.partition, settings, bodies, self.materializer, live, async_acks, traffic)
        subscriptions = SubscriptionApi(self.partition, settings, bodies, waker, webhooks, signing)
        catch_up = self.partition.catch_up
        fresh_streams = fresh(streams.respond, catch_up, lambda request: self.partition.of(request.path).catch_up())
        self._apis = (
            # before all streams
            Endpoint(
                subscription_api.PREFIX,
                fresh(subscriptions.respond, catch_up, looks_first=True),
                traffic,
                form=error_form,
            ),
            Endpoint(
                stream_api.PREFIX,
                fresh_streams,
                traffic,
                live_s_max=stream_api.live_s_max(settings),
                compression=compression,
            ),
            Endpoint(
                session_api.PREFIX,
                fresh(sessions.respond, catch_up, lambda request: self._of_session(request).catch_up()),
                traffic,
                live_s_max=session_api.LIVE_S_MAX,
                compression=compression,
            ),
        )
        sessions_list = SessionList(self.partition, settings, live)
        self._list = Endpoint(
            session_list.ROOT,
            sessions_list.respond,
            traffic,
            live_s_max=session_list.live_s_max(settings),
            compression=compression,
        )
        self._ndjson = NdjsonEndpoint(uploads, bodies)
        self._websocket = WebSocketEndpoint(uploads, bodies)
        self.fast_appends = FastAppends(self.partition, traffic, settings.body_bytes_max)
        self._appends = AppendEndpoint(self.fast_appends, self._api_of)
        self.fast_reads = FastReads(fresh_streams, traffic)
        self._others = Framework(
            routes=[
                *status.routes(self.partition, metrics.exposition, CONTENT_TYPE),
                *admin.routes(self.partition, bodies),
                *openapi.routes(),
            ],
            traffic=traffic,
            lifespan=self._lifespan,
        )

    def _of_session(self, request: Request) -> Partition:
        return self.partition.of(SESSION_PATH_PREFIX + request.path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any ASGI connection. The APIs go around the framework."""
        await self._handler(scope)(scope, receive, send)

    def _handler(self, scope: Scope) -> Application:
        if scope["type"] == "lifespan":
            return self._others
        return self._appends if scope.get("method") == "POST" else self._api_of(scope)

    def _api_of(self, scope: Scope) -> Application:
        path, root_bytes = raw_path_of(scope), len(scope.get("root_path", ""))
        if scope["type"] == "websocket":
            return self._websocket if path.startswith(session_api.PREFIX, root_bytes) else self._others
        if path[root_bytes:] == session_list.ROOT + session_list.PATH.encode():
            return self._list
        for api in self._apis:
            if path.startswith(api.prefix, root_bytes):
                is_upload = api.prefix == session_api.PREFIX and self._ndjson.takes(scope)
                return self._ndjson if is_upload else api
        return self._others

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the engine, and close it at the end with everything checkpointed. Raises StartError."""
        try:
            await self.partition.open()
            self._appends.open()
            await asyncio.to_thread(self._signing.open)
            background = [
                asyncio.create_task(_for_ever(self._sweeper.run), name="sweeper"),
                asyncio.create_task(_for_ever(self.materializer.run), name="materializer"),
                asyncio.create_task(_for_ever(self._waker.run), name="waker"),
                *(asyncio.create_task(_for_ever(maker.run), name="snapshots") for maker in self._snapshots),
            ]
            try:
                yield
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        finally:
            await self._webhooks.aclose()
            await self.partition.aclose(self.drain_s_left)

    @property
    def spoiled(self) -> EngineStopped | None:
        """Why nothing can be shown or done here any more before another process begins anew; None as long as it can."""
        failure = self.partition.failure
        return failure if isinstance(failure, EngineStopped) and failure.spoils_reads else None

    def drain(self) -> None:
        """Not ready any more, and live reads end; requests in flight still finish."""
        if self._drained_by is None:
            self._drained_by = asyncio.get_running_loop().time() + self.settings.drain_s
        self.partition.drain()

    @property
    def drain_s_left(self) -> float:
        """What there is left of `drain_s` since `drain`, in seconds: all that waits in a stop shares it."""
        if self._drained_by is None:
            return self.settings.drain_s
        return max(0.0, self._drained_by - asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _lifespan(self, _starlette: Any) -> AsyncIterator[None]:
        async with self.running():
            yield


def create_app(settings: Settings | None = None) -> App:
    """A broker to be served by uvicorn, or to be mounted in another ASGI application.

    Its files are opened when its lifespan begins, so one process only: a second one on the same data folder ends with
    `DataDirInUse`.
    """
    return App(Settings() if settings is None else settings)


def _partitioned(settings: Settings) -> tuple[Partitioned, list[SnapshotMaker]]:
    if settings.engine == "kafka":
        return _kafka(settings)
    return Partition(*_engine(settings), checkpoint_interval_s=settings.checkpoint_interval_s), []


def _engine(settings: Settings) -> tuple[Journal, SqliteStore]:
    if settings.engine == "memory":
        return MemoryJournal(), SqliteStore(None)
    data_dir = DataDir(settings.data_dir)
    return FileJournal(data_dir), SqliteStore(data_dir)


def _kafka(settings: Settings) -> tuple[Partitioned, list[SnapshotMaker]]:
    """A journal and a store for each partition of the topic, each store in a folder of its own."""
    try:
        from broker.journal.kafka import Kafka  # noqa: PLC0415 -- its client is an extra
        from broker.journal.kafka_log import KafkaLog  # noqa: PLC0415 -- as above
        from broker.journal.kafka_topic import KafkaTopic  # noqa: PLC0415 -- as above
    except ModuleNotFoundError as error:
        raise StartError(f"{error}", "install streamfold[kafka]") from error
    count = settings.kafka_partitions
    kafka = Kafka(
        KafkaTopic(
            settings.kafka_bootstrap,
            settings.kafka_topic,
            count,
            tls=settings.kafka_tls,
            ca="" if settings.kafka_ca is None else str(settings.kafka_ca),
            username=settings.kafka_username,
            password=settings.kafka_password,
            mechanism=settings.kafka_mechanism,
        )
    )
    partitions: list[Partition] = []
    makers: list[SnapshotMaker] = []
    one_at_a_time = asyncio.Lock()
    for number in range(count):
        data_dir, shared = DataDir(settings.data_dir / f"partition-{number}"), KafkaLog(kafka, number)
        journal = ClusterJournal(shared, partition=number, partitions=count, quarantine=data_dir.quarantine)
        shelf = _shelf(settings, number)
        restore = None if shelf is None else _restorer(shared, shelf, data_dir)
        store = SqliteStore(data_dir, restore=restore)
        partition = Partition(journal, store, checkpoint_interval_s=settings.checkpoint_interval_s)
        partitions.append(partition)
        if shelf is not None:
            makers.append(
                SnapshotMaker(
                    partition,
                    store,
                    journal,
                    shared,
                    shelf,
                    data_dir.snapshot_path,
                    log_bytes=settings.snapshot_log_bytes,
                    one_at_a_time=one_at_a_time,
                )
            )
    return partitions[0] if count == 1 else Partitions(partitions), makers


def _shelf(settings: Settings, number: int) -> Shelf | None:
    if settings.snapshot_dir is None:
        return None
    return Shelf(Folder(settings.snapshot_dir / settings.kafka_topic / f"partition-{number}"))


def _restorer(shared: SharedLog, shelf: Shelf, data_dir: DataDir) -> Restorer:
    return Restorer(
        shared,
        shelf,
        data_dir.snapshot_path,
        distrusted=data_dir.distrusted_snapshots,
        note=data_dir.begin_with,
    )


def _signing(settings: Settings) -> Signing:
    if settings.signing_key is not None:
        return Signing(settings.signing_key)
    return Signing(None if settings.engine == "memory" else DataDir(settings.data_dir).signing_key_path)


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    """Run it again after a bug."""
    while True:
        try:
            await run()
        except Exception:  # what it stumbled over must not take the log down, which knows nothing of it
            log.exception("a background task failed; it starts again")
            await asyncio.sleep(_REVIVE_S)
