"""Forks over HTTP (CORE 8): trees of them against a model."""

import asyncio

from hypothesis import given, settings, strategies as st

from broker.core.offset import parse_offset
from tests.broker.http.scene import Scene, make_fork, read, staged

NAMES = ("p", "q", "r", "s", "t")


class Family:
    """What there should be: lists. A deleted stream stays in `parents` for as long as it has children there."""

    def __init__(self) -> None:
        self.records: dict[str, list[int]] = {}  # of those that live
        self.parents: dict[str, str | None] = {}

    def let_go(self) -> None:
        while gone := self.parents.keys() - self.records.keys() - set(self.parents.values()):
            for name in gone:
                del self.parents[name]


class Play:
    """Random steps, and after each of them everything is read."""

    def __init__(self, scene: Scene, data: st.DataObject) -> None:
        self.scene = scene
        self.client = scene.client
        self.data = data
        self.family = Family()
        self.number = 0

    async def run(self) -> None:
        steps = (self.create, self.append, self.append, self.fork, self.fork, self.delete, self.let_go)
        for number in range(1, self.data.draw(st.integers(2, 25))):
            self.number = number
            step = self.data.draw(st.sampled_from(steps))
            await step(self.data.draw(st.sampled_from(NAMES)))
            await self.compare()
        for name in NAMES:
            await self.delete(name)
        await self.scene.let_go()

    def gone(self, name: str) -> int:
        """What anything but a PUT is told of a stream that does not live."""
        return 410 if name in self.family.parents else 404

    async def create(self, name: str) -> None:
        answer = await self.client.put(_path(name), body=b"[%d]" % self.number)
        if name not in self.family.parents:
            assert answer.status == 201
            self.family.records[name], self.family.parents[name] = [self.number], None

    async def append(self, name: str) -> None:
        records = self.family.records.get(name)
        answer = await self.client.post(_path(name), b"[%d,%d]" % (self.number, -self.number))
        assert answer.status == (self.gone(name) if records is None else 204)
        if records is not None:
            records += [self.number, -self.number]

    async def fork(self, name: str) -> None:
        source = self.data.draw(st.sampled_from(NAMES))
        inherited = self.family.records.get(source)
        position = self.data.draw(st.integers(0, len(inherited or ())))
        anchor, sub_offset = self.data.draw(st.sampled_from(await self.anchors(source, position)))
        answer = await make_fork(
            self.client, _path(name), _path(source), anchor, stream_fork_sub_offset=str(sub_offset)
        )
        if name in self.family.parents:
            assert answer.status in {200, 409}
        elif inherited is None:
            assert answer.status == (409 if source in self.family.parents else 404)
        else:
            assert answer.status == 201
            self.family.records[name], self.family.parents[name] = inherited[:position], source

    async def anchors(self, source: str, position: int) -> list[tuple[str, int]]:
        """Ways to name a position: from the start, or by the offset where a read of all has ended."""
        head = await self.client.send("HEAD", _path(source))
        at_tail = head.status == 200 and parse_offset(head.offset)[0] == position
        return [("-1", position), (head.offset, 0)] if at_tail else [("-1", position)]

    async def delete(self, name: str) -> None:
        answer = await self.client.send("DELETE", _path(name))
        assert answer.status == (204 if name in self.family.records else self.gone(name))
        self.family.records.pop(name, None)
        await self.scene.sweeper.clear_up()
        self.family.let_go()

    async def let_go(self, _name: str) -> None:
        await self.scene.let_go()

    async def compare(self) -> None:
        for name in NAMES:
            answer = await self.client.get(_path(name))
            if name in self.family.records:
                assert (name, answer.status, answer.json) == (name, 200, self.family.records[name])
                assert parse_offset(answer.offset)[0] == len(self.family.records[name])
                assert await read(self.client, _path(name), answer.offset) == []
            else:
                assert (name, answer.status) == (name, self.gone(name))


def _path(name: str) -> str:
    return f"/v1/stream/{name}"


@settings(max_examples=60)
@given(st.data())
def test_trees_of_forks_read_as_lists_do_and_leave_nothing_behind(data: st.DataObject) -> None:
    async def run() -> None:
        async with staged() as scene:
            await Play(scene, data).run()
            await scene.check_that_nothing_is_left()

    asyncio.run(run())
