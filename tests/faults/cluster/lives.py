"""What comes and goes in a storm over a cluster, and must be the same at every node in the end.

Streams that are deleted and made again, that die of themselves, that are forked; answers that nobody goes on with.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from functools import partial

import httpx

from tests.eventually import eventually
from tests.faults.client import SESSIONS, STREAMS, Answer
from tests.faults.cluster.nodes import Nodes
from tests.faults.cluster.replicas import paths_in
from tests.faults.storm import Storm
from tests.faults.writers import wait_a_while

TEXT = {"content-type": "text/plain"}
ROOT, ROOT_TEXT = "root", "a stream that is forked;" * 20
COMING = ("coming-0", "coming-1")
PAUSE_S = 0.3


class Lives:
    """One run's. `writing` lasts as long as the storm; `faults` is asked for when all nodes are ready again."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._forks: list[str] = []
        self._mortals: list[str] = []
        self._abandoned: list[str] = []

    def writing(self) -> Iterator[Coroutine[None, None, None]]:
        """All that writes."""
        for path in COMING:
            yield self._come_and_go(path)
        yield self._fork()
        yield self._die()
        yield self._abandon()

    async def _sure(
        self, method: str, target: str, content: str = "", headers: Mapping[str, str] = TEXT, **parameters: str
    ) -> Answer:
        """The first definite answer."""
        while True:
            answer = await self._storm.client.ask(
                method, target, headers=headers, params=parameters, content=content.encode()
            )
            if answer is not None:
                return answer
            await asyncio.sleep(PAUSE_S)

    async def _come_and_go(self, path: str) -> None:
        life = 0
        while not self._storm.over.is_set():
            life += 1
            await self._sure("PUT", f"{STREAMS}/{path}")
            for _ in range(3):
                await self._sure("POST", f"{STREAMS}/{path}", f"life {life};")
                await wait_a_while(self._storm, PAUSE_S / 3)
            await self._sure("DELETE", f"{STREAMS}/{path}")

    async def _fork(self) -> None:
        await self._sure("PUT", f"{STREAMS}/{ROOT}", ROOT_TEXT)
        while not self._storm.over.is_set():
            path = f"fork-{len(self._forks)}"
            forked = await self._sure(
                "PUT", f"{STREAMS}/{path}", headers={**TEXT, "stream-forked-from": f"{STREAMS}/{ROOT}"}
            )
            if forked.status in (200, 201):
                self._forks.append(path)
            await wait_a_while(self._storm, 3 * PAUSE_S)

    async def _die(self) -> None:
        while not self._storm.over.is_set():
            path = f"mortal-{len(self._mortals)}"
            self._mortals.append(path)
            await self._sure("PUT", f"{STREAMS}/{path}", "for a second", {**TEXT, "stream-ttl": "1"})
            await wait_a_while(self._storm, PAUSE_S)

    async def _abandon(self) -> None:
        while not self._storm.over.is_set():
            session_id = f"abandoned-{len(self._abandoned)}"
            await self._sure("PUT", f"{SESSIONS}/{session_id}")
            opened = await self._sure(
                "POST",
                f"{SESSIONS}/{session_id}/generations/g/chunks",
                '"never to be finished"',
                {"content-type": "application/json", "producer-seq": "0"},
                leaseMs="1000",
            )
            if opened.status < 300:
                self._abandoned.append(session_id)
            await wait_a_while(self._storm, 3 * PAUSE_S)

    # -- when it is over ---------------------------------------------------------------------------------------------

    async def faults(self, nodes: Nodes) -> list[str]:
        """Where some node does not have what must be left."""
        for path in COMING:  # a last life, of which all is known
            await self._sure("DELETE", f"{STREAMS}/{path}")
            await self._sure("PUT", f"{STREAMS}/{path}")
            await self._sure("POST", f"{STREAMS}/{path}", "the last life;")
        await eventually(partial(self._are_dead, nodes))
        found: list[str] = []
        for node in nodes.all:
            async with httpx.AsyncClient(base_url=node.url, timeout=30.0) as client:
                found += [f"{node.data_dir.name}: {fault}" for fault in await self._faults_of(client)]
        print(f"{len(self._forks)} forks, {len(self._mortals)} mortals, {len(self._abandoned)} abandoned answers")
        return found

    async def _are_dead(self, nodes: Nodes) -> bool:
        """Whether the log has ended all that was mortal: to look at it would make it live on."""
        return not set(self._mortals) & set(paths_in(await nodes.replayed()))

    async def _faults_of(self, client: httpx.AsyncClient) -> list[str]:
        expected = {**dict.fromkeys(self._forks, ROOT_TEXT), **dict.fromkeys(COMING, "the last life;")}
        found: list[str] = []
        for path, text in expected.items():
            page = await client.get(f"{STREAMS}/{path}", params={"offset": "-1"})
            if (page.status_code, page.text) != (200, text):
                found.append(f"{path} is {page.status_code} with {page.text[:80]!r}")
        for path in self._mortals:
            status = (await client.get(f"{STREAMS}/{path}")).status_code
            found += [f"{path} lives: {status}"] if status != 404 else []
        for session_id in self._abandoned:
            generation = (await client.get(f"{SESSIONS}/{session_id}/generations/g")).json()
            if (generation.get("status"), generation.get("reason")) != ("failed", "LEASE_EXPIRED"):
                found.append(f"the answer of {session_id} is {generation}")
        return found
