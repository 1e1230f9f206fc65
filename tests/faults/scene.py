"""The scene of the storm: who writes and reads what, and all that is looked at when it is over."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from tests.faults.client import SESSIONS
from tests.faults.history import Generation, Log, Place, SessionState, Told, View, Write, place_of
from tests.faults.readers import START, Reader
from tests.faults.storm import Storm
from tests.faults.talkers import talk_in_lanes, talk_life_after_life
from tests.faults.writers import (
    Producer,
    Stream,
    Vandal,
    attempt,
    created,
    producer_headers,
    settle_what_is_left,
    wait_a_while,
    write_and_close,
    write_life_after_life,
    write_without_a_producer,
)

JSON = "application/json"
BYTES = "application/octet-stream"
TEXT = "text/plain"
STEADY = {"json-0": JSON, "json-1": JSON, "bytes": BYTES, "text": TEXT}
CLOSING = {"closing-json": JSON, "closing-bytes": BYTES}
RECYCLED = {"recycled-json": JSON, "recycled-bytes": BYTES}
TALKS = {"talk-0": 2, "talk-1": 1}
RECYCLED_TALK = "recycled-talk"
PRODUCERS = 2
READERS = 2
MIDDLES_MAX = 40
CLOSING_PAUSE_S = 2.0


@dataclass(eq=False)
class Scene:
    """One run's writers and readers."""

    storm: Storm
    recycles: bool = True
    """Whether paths are deleted and made again. That another node knows of it at once is no promise."""
    streams: dict[str, Stream] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    last_life: str = ""
    """Of the session that is deleted and made again."""

    def __post_init__(self) -> None:
        self.client, self.history = self.storm.client, self.storm.history
        self._readings: list[asyncio.Task[None]] = []

    @property
    def talks(self) -> list[str]:
        """Ids of the sessions."""
        return [*TALKS, RECYCLED_TALK] if self.recycles else [*TALKS]

    # -- while it lasts ----------------------------------------------------------------------------------------------

    def writing(self) -> Iterator[Coroutine[None, None, None]]:
        """All that writes, until the storm is over and what was begun has an answer."""
        for path, content_type in STEADY.items():
            yield self._write_steadily(path, content_type)
        for name, content_type in CLOSING.items():
            yield self._close_one_after_another(name, content_type)
        for session_id, lanes in TALKS.items():
            self._session(session_id, may_vanish=False)
            yield talk_in_lanes(self.storm, session_id, lanes)
        if self.recycles:
            for path, content_type in RECYCLED.items():
                self._stream(path, content_type, may_vanish=True)
                yield write_life_after_life(self.storm, path, content_type)
            self._session(RECYCLED_TALK, may_vanish=True)
            yield self._recycle_a_talk()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Readers of all that is written run meanwhile; an error of one of them is raised at the end."""
        try:
            yield
        finally:
            for task in self._readings:
                task.cancel()
            ends = await asyncio.gather(*self._readings, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _write_steadily(self, path: str, content_type: str) -> None:
        stream = self._stream(path, content_type)
        await created(self.storm, stream, self.storm.chance(path))
        producers = [Producer(self.storm, stream, f"{path}-p{number}") for number in range(PRODUCERS)]
        async with asyncio.TaskGroup() as group:
            for producer in producers:
                group.create_task(producer.run())
            group.create_task(Vandal(self.storm, stream, producers).run())
            group.create_task(write_without_a_producer(self.storm, stream))

    async def _close_one_after_another(self, name: str, content_type: str) -> None:
        number = 0
        while not self.storm.over.is_set():
            await write_and_close(self.storm, self._stream(f"{name}-{number}", content_type))
            await wait_a_while(self.storm, CLOSING_PAUSE_S)
            number += 1

    async def _recycle_a_talk(self) -> None:
        self.last_life = await talk_life_after_life(self.storm, RECYCLED_TALK)

    def _stream(self, path: str, content_type: str, *, may_vanish: bool = False) -> Stream:
        stream = self.streams[path] = Stream(path, content_type)
        if not stream.is_json:
            self.history.byte_paths.add(path)
        self._read(path, is_json=stream.is_json, may_vanish=may_vanish)
        return stream

    def _session(self, session_id: str, *, may_vanish: bool) -> None:
        path = f"sessions/{session_id}"
        self.history.session_paths.add(path)
        self._read(path, is_json=True, may_vanish=may_vanish)

    def _read(self, path: str, *, is_json: bool, may_vanish: bool) -> None:
        for number in range(READERS):
            reader = Reader(self.storm, f"reader {number}", path, is_json, may_vanish)
            self.readers.append(reader)
            self._readings.append(asyncio.create_task(reader.run()))

    # -- when it is over ---------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Every batch gets a definite answer, every generation its end."""
        await settle_what_is_left(self.storm, self.streams)
        for session_id in self.talks:
            await self.storm.until(partial(self._is_idle, session_id), f"end of all generations in {session_id}")

    async def _is_idle(self, session_id: str) -> bool:
        """As of a moment after all that was acknowledged: a node of a cluster may tell of an earlier one."""
        answer = await self.client.ask("GET", f"{SESSIONS}/{session_id}")
        if answer is None or answer.problem["status"] != "idle":
            return False
        told = place_of(str(answer.problem["offset"]))
        writes = [write for write in self.history.writes if write.path == f"sessions/{session_id}"]
        acked = [place_of(offset) for write in writes for offset in write.offsets]
        return all(place.position <= told.position for place in acked if place.incarnation == told.incarnation)

    async def look_at_everything(self) -> None:
        """Each stream from start to end, and what the broker says of each session."""
        for path in self._paths():
            self.history.logs.append(await self.whole(path))
        for session_id in self.talks:
            self.history.sessions.append(await self.state(session_id))

    def _paths(self) -> list[str]:
        return [*self.streams, *sorted(self.history.session_paths)]

    async def whole(self, path: str) -> Log:
        """A stream from start to end, by catch-up reads."""
        content: list[str] = []
        offset, closed, up_to_date = START, False, False
        while not up_to_date:
            page = await self.client.page(path, offset)
            if page is None or page.status != 200:
                self.history.complain(f"{path} at {offset} cannot be read: {page and page.status}")
                return Log(path, place_of(offset).incarnation, content, complete=False)
            content += page.content
            offset, closed, up_to_date = page.next_offset, page.closed, page.up_to_date
        if place_of(offset).position != len(content):
            self.history.complain(f"{path} ends at {offset} after {len(content)} positions")
        return Log(path, place_of(offset).incarnation, content, closed)

    async def state(self, session_id: str) -> SessionState:
        """What the broker says of a session."""
        path = f"sessions/{session_id}"
        answer = await self.client.ask("GET", f"{SESSIONS}/{session_id}/messages")
        life = self.last_life if session_id == RECYCLED_TALK else ""
        if answer is None or answer.status != 200:
            self.history.complain(f"the messages of {session_id} were answered {answer}")
            return SessionState(path, START, [], life)
        state = SessionState(path, str(answer.problem["offset"]), answer.problem["messages"], life)
        for generation in self._generations(path, life):
            state.statuses[generation.generation_id] = await self._status(session_id, generation)
        return state

    def _generations(self, path: str, life: str) -> list[Generation]:
        """Those of which something may have arrived."""
        generations = [it for it in self.history.generations if (it.path, it.life) == (path, life)]
        return [it for it in generations if any(batch.is_acked for batch in it.batches)]

    async def _status(self, session_id: str, generation: Generation) -> str:
        answer = await self.client.ask("GET", f"{SESSIONS}/{session_id}/generations/{generation.generation_id}")
        return "unknown" if answer is None else str(answer.problem.get("status"))

    async def every_reader_arrives(self) -> None:
        """Each reader, in its own way, sees all there is."""
        ends = {log.path: Place(len(log.content), log.incarnation) for log in self.history.logs}
        for reader in self.readers:
            end = ends[reader.path]
            what = f"{reader.name} of {reader.path} at {end}"
            await self.storm.until(partial(reader.reached, end), what)

    async def read_from_the_middle(self) -> None:
        """Any offset that was acknowledged is a place to begin to read."""
        chance = self.storm.chance("middles")
        for log in self.history.logs:
            acked = {offset for write in self.history.writes if write.path == log.path for offset in write.offsets}
            offsets = sorted(offset for offset in acked if place_of(offset).incarnation == log.incarnation)
            for offset in chance.sample(offsets, min(MIDDLES_MAX, len(offsets))):
                page = await self.client.page(log.path, offset)
                if page is None or page.status != 200:
                    self.history.complain(f"a read of {log.path} at {offset} was answered {page and page.status}")
                    continue
                start = place_of(offset).position
                self.history.views.append(View("a look", log.path, log.incarnation, start, page.content))

    async def nothing_has_changed(self) -> None:
        """What there was before a clean restart is there after it, byte for byte."""
        for before in self.history.logs:
            after = await self.whole(before.path)
            if after != before:
                self.history.complain(f"{before.path} is another after a clean restart: {len(after.content)} positions")
        for state in self.history.sessions:
            session_id = state.path.removeprefix("sessions/")
            if await self.state(session_id) != state:
                self.history.complain(f"the messages of {session_id} are others after a clean restart")

    async def last_batches_are_duplicates(self) -> None:
        """What producers know of themselves survives with the data: each one's last batch is known, and where it is."""
        for write in self._last_batches():
            answer = await attempt(
                self.storm, write, self.streams[write.path], producer_headers(write.producer, write.epoch, write.seq)
            )
            if answer is None or answer.status != 204:
                self.history.complain(f"{write.name}, told again after a clean restart, was answered {answer}")

    def _last_batches(self) -> list[Write]:
        last: dict[tuple[str, str], Write] = {}
        for write in self.history.writes:
            if write.producer and write.path in STEADY and write.is_acked:
                known = last.get((write.path, write.producer))
                if known is None or (known.epoch, known.seq) < (write.epoch, write.seq):
                    last[write.path, write.producer] = write
        return list(last.values())

    # -- what it was worth -------------------------------------------------------------------------------------------

    def summary(self) -> str:
        told = Counter(told.name.lower() for write in self.history.writes for told in write.told)
        retried = sum(1 for write in self.history.writes if write.is_acked and Told.UNKNOWN in write.told)
        views = sum(len(view.content) for view in self.history.views)
        return (
            f"{len(self.history.writes)} batches ({dict(told)}; {retried} acknowledged after an unknown answer), "
            f"{len(self.history.generations)} generations, {len(self.history.closings)} closings, "
            f"{len(self.history.logs)} streams, {len(self.history.views)} views of {views} positions"
        )

    def complain_if_it_proves_little(self, kills: int) -> None:
        """A storm in which next to nothing happened would pass, too."""
        told = Counter(told for write in self.history.writes for told in write.told)
        for fate in Told:
            if told[fate] < kills // 10:
                self.history.complain(f"only {told[fate]} attempts were {fate.name}: this run proves little")
