"""Forks over HTTP (PROTOCOL.md 4.2; CORE 8): what a source knows of its forks, what becomes of it, and what heals."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker import Settings, create_app, limits
from broker.core.entry import Kind
from broker.sweeper import Sweeper
from tests.broker.core.entries import delete, fork, fork_ref
from tests.broker.held import blocked
from tests.broker.http.asgi import Client
from tests.broker.http.scene import A, B, C, D, Scene, chain, make_fork, read
from tests.eventually import until


@pytest.fixture
def client(scene: Scene) -> Client:
    return scene.client


# -- the same fork again ---------------------------------------------------------------------------------------------


async def test_same_fork_again_is_confirmed_and_noted_once(scene: Scene) -> None:
    client = scene.client
    told = await chain(client)
    asked: dict[str, Any] = {"offset": told["a1"], "stream_fork_sub_offset": "1", "stream_ttl": "60"}
    first = await make_fork(client, D, B, **asked)
    await client.post(D, b"9")
    again = await make_fork(client, D, B, **asked)
    assert [first.status, again.status, again.offset] == [201, 200, (await client.send("HEAD", D)).offset]
    assert [await scene.children("b"), await read(client, D)] == [["c", "d"], [0, 1, 9]]
    for changed in (
        {"stream_fork_sub_offset": "0"},
        {"offset": told["b3"]},
        {"stream_ttl": "61"},
        {"stream_closed": "true"},
    ):
        refused = await make_fork(client, D, B, **{**asked, **changed})
        assert (refused.status, refused.code) == (409, "STREAM_EXISTS")
    assert (await make_fork(client, D, A, told["a2"], stream_ttl="60")).status == 409
    assert (await client.put(D, stream_ttl="60")).status == 409


async def test_two_who_make_the_same_fork_at_once_both_get_it(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    answers = await asyncio.gather(*(make_fork(scene.client, B, A) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 200, 201]
    assert (await scene.children("a"), await read(scene.client, B)) == (["b"], [0])


async def test_fork_is_confirmed_also_after_its_source_was_deleted(client: Client) -> None:
    await client.put(A, body=b"[0]")
    offset = (await make_fork(client, B, A)).offset
    await client.send("DELETE", A)
    assert (await make_fork(client, B, A, offset)).status == 200
    assert (await make_fork(client, C, A, offset)).code == "FORK_SOURCE_GONE"


async def test_path_that_is_taken_is_not_forked_onto(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    await scene.client.put(B, body=b"[5]")
    assert (await make_fork(scene.client, B, A)).code == "STREAM_EXISTS"
    assert (await scene.children("a"), await read(scene.client, B)) == ([], [5])


async def test_path_that_is_taken_while_the_source_is_asked_leaves_no_note(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    scene.journal.held = True
    forking = scene.client.begin("PUT", B, headers={"stream-forked-from": A})
    await until(lambda: scene.journal.waiting)
    creating = scene.client.begin("PUT", B, headers={"content-type": "application/json"})
    await until(lambda: len(scene.journal.waiting) == 2)
    scene.journal.held = False
    scene.journal.commit()
    assert [(await creating.answer()).status, (await forking.answer()).code] == [201, "STREAM_EXISTS"]
    assert await scene.children("a") == []


# -- soft delete -----------------------------------------------------------------------------------------------------


async def test_deleted_source_is_gone_for_everybody_but_its_forks(scene: Scene) -> None:
    """4.2 "Soft-delete and lifecycle"."""
    client = scene.client
    await client.put(A, body=b"[0,1]")
    await make_fork(client, B, A)
    assert (await client.send("DELETE", A)).status == 204
    for method in ("GET", "HEAD", "POST", "DELETE"):
        answer = await client.send(method, A, b"[2]" if method == "POST" else b"", {"content-type": "application/json"})
        assert (method, answer.status) == (method, 410)
    assert (await client.get(f"{A}?offset=-1&live=sse")).code == "STREAM_GONE"
    blocked_put = await client.put(A)
    assert (blocked_put.status, blocked_put.code) == (409, "STREAM_EXISTS")
    await scene.let_go()
    assert await read(client, B) == [0, 1]
    await client.send("DELETE", B)
    await scene.let_go()
    assert [(await client.get(A)).status, (await client.put(A)).status, await read(client, A)] == [404, 201, []]


async def test_reader_that_waits_is_told_when_the_source_is_deleted(client: Client) -> None:
    offset = (await client.put(A, body=b"[0]")).offset
    await make_fork(client, B, A)
    waiting = client.begin("GET", f"{A}?offset={offset}&live=long-poll")
    await asyncio.sleep(0)
    await client.send("DELETE", A)
    assert (await waiting.answer()).code == "STREAM_GONE"


async def test_last_fork_takes_the_whole_chain_of_deleted_sources_with_it(scene: Scene) -> None:
    await chain(scene.client)
    for path in (A, B):
        await scene.client.send("DELETE", path)
    await scene.let_go()
    assert await read(scene.client, C) == [0, 1, 10, 20]
    await scene.client.send("DELETE", C)
    await scene.let_go()
    await scene.check_that_nothing_is_left()


# -- what heals ------------------------------------------------------------------------------------------------------


CHILD = 0xC


async def test_note_of_a_fork_that_never_came_is_taken_away_after_its_deadline(scene: Scene) -> None:
    """CORE 8: a crash between FORK_REF and FORK heals."""
    await scene.client.put(A, body=b"[0]")
    deadline_ms = scene.journal.time_ms + 500
    await scene.partition.propose(fork_ref("b", CHILD, path="a", deadline_ms=deadline_ms))
    await scene.client.send("DELETE", A)
    await scene.sweeper.look_at_sources()
    assert await scene.children("a") == ["b"]
    scene.journal.time_ms = deadline_ms + 1
    await scene.sweeper.look_at_sources()
    assert (await scene.client.get(A)).status == 404


async def test_fork_on_its_way_past_its_deadline_keeps_its_note(scene: Scene) -> None:
    """A commit from before the deadline is handed back after it: the fork comes, and needs the records."""
    await scene.client.put(A, body=b"[0]")
    source = await scene.partition.stream("a")
    assert source is not None
    deadline_ms = scene.journal.time_ms + 500
    await scene.partition.propose(fork_ref("b", CHILD, path="a", deadline_ms=deadline_ms))
    scene.journal.held = True
    coming = scene.partition.propose_nowait(
        fork(path="b", child=CHILD, lineage=(("a", source.incarnation, 1),), source_path="a", deadline_ms=deadline_ms)
    )
    scene.journal.time_ms = deadline_ms + 1
    looking = asyncio.create_task(scene.sweeper.look_at_sources())
    await until(lambda: len(scene.journal.waiting) == 2)
    assert await blocked(looking)
    scene.journal.time_ms = deadline_ms - 1
    scene.journal.held = False
    scene.journal.commit()
    await asyncio.gather(coming, looking)
    assert (await scene.children("a"), await read(scene.client, B)) == (["b"], [0])


async def test_fork_cannot_come_later_than_its_source_was_told(scene: Scene) -> None:
    """Else the sweeper takes the note away first, and the fork comes to records that nobody keeps."""
    await scene.client.put(A, body=b"[0]")
    scene.journal.held = True
    forking = scene.client.begin("PUT", B, headers={"stream-forked-from": A})
    await until(lambda: scene.journal.waiting)
    scene.journal.time_ms += limits.FORK_MS_MAX - 1
    scene.journal.commit()
    await until(lambda: scene.journal.waiting)
    assert [entry.kind for entry in scene.journal.waiting] == [Kind.FORK]
    scene.journal.time_ms += 2
    scene.journal.held = False
    scene.journal.commit()
    late = await forking.answer()
    assert (late.status, late.code, late.headers["retry-after"]) == (503, "UNAVAILABLE", "1")
    assert ((await scene.client.get(B)).status, await scene.children("a")) == (404, [])


async def test_overdue_fork_that_was_not_taken_away_yet_still_counts(scene: Scene) -> None:
    """Its own forks inherit through it: a look at the sources just then must not lose them their records."""
    client = scene.client
    await client.put(A, body=b"[0]")
    await make_fork(client, B, A, stream_ttl="100")
    await make_fork(client, C, B, stream_ttl="1000")
    await client.send("DELETE", A)
    scene.journal.time_ms += 110_000
    await scene.sweeper.look_at_sources()
    await scene.let_go()
    assert (await read(client, C), await scene.children("a")) == ([0], ["b"])


async def test_fork_that_went_unseen_is_missed_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that saw it go had no time to tell the source."""
    monkeypatch.setattr(limits, "FORK_MS_MAX", 100)
    for life in range(2):
        app = create_app(Settings(data_dir=tmp_path / "data"))
        await app.partition.open()  # without its lifespan: nobody sweeps but the test
        try:
            client = Client(app)
            if life == 0:
                await client.put(A, body=b"[0]")
                assert (await make_fork(client, B, A)).status == 201
                await client.send("DELETE", A)
                await client.send("DELETE", B)
                continue
            assert (await client.get(A)).status == 410
            assert app.partition.orphans == []
            sweeper = Sweeper(app.partition)
            while (await client.get(A)).status == 410:
                await sweeper.look_at_sources()
                await asyncio.sleep(0.01)
            assert (await client.put(A)).status == 201
        finally:
            await app.partition.aclose()


async def test_source_that_cannot_be_told_is_told_next_time(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    await make_fork(scene.client, B, A)
    await scene.client.send("DELETE", B)
    scene.journal.held = True
    telling = asyncio.create_task(scene.sweeper.clear_up())
    await until(lambda: scene.journal.waiting)
    scene.journal.refuse(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        await telling
    scene.journal.held = False
    assert await scene.children("a") == ["b"]
    await scene.sweeper.clear_up()
    assert await scene.children("a") == []


async def test_two_notes_for_one_path_are_told_apart(scene: Scene) -> None:
    """A fork that was deleted and made anew: what is told of the first must not lose the second its records."""
    await scene.client.put(A, body=b"[0]")
    await make_fork(scene.client, B, A)
    await scene.partition.propose(delete(path="b"))
    assert (await make_fork(scene.client, B, A)).status == 201
    assert await scene.children("a") == ["b", "b"]
    await scene.sweeper.clear_up()
    assert await scene.children("a") == ["b"]
    await scene.client.send("DELETE", A)
    await scene.let_go()
    assert await read(scene.client, B) == [0]
