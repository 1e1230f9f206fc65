"""The commands of a shell: against a real broker, and without one."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from producer import Producer
from tests.live import Broker, free_port

PROGRAM = str(Path(sysconfig.get_path("scripts"), "streamfold"))
CHUNKS = [
    {"type": "start", "messageId": "m"},
    {"type": "text-start", "id": "1"},
    {"type": "text-delta", "id": "1", "delta": "Hello "},
    {"type": "text-delta", "id": "1", "delta": "\N{WAVING HAND SIGN}\x1b[2J"},
    {"type": "text-end", "id": "1"},
]
NDJSON = "".join(f"{json.dumps(chunk)}\n" for chunk in CHUNKS)


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "STREAMFOLD_URL": url}


async def run(broker: Broker, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return await anyio.to_thread.run_sync(run_at, broker.url, arguments, stdin)


def run_at(url: str, arguments: tuple[str, ...], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment(url),
        timeout=30,
        check=False,
    )


async def started(broker: Broker, *arguments: str) -> anyio.abc.Process:
    return await anyio.open_process([PROGRAM, *arguments], env=environment(broker.url))


async def line_of(process: anyio.abc.Process) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        line += await process.stdout.receive(1)
    return line.decode()


async def rest_of(stream: anyio.abc.ByteReceiveStream | None) -> str:
    assert stream is not None
    return b"".join([piece async for piece in stream]).decode()


async def status_when_streaming(broker: Broker, session: str) -> Any:
    """The item of the only message, once it has a chunk."""
    while True:
        listed = await run(broker, "messages", session, "--json")
        items = json.loads(listed.stdout)["messages"] if listed.returncode == 0 else []
        if items and items[0]["status"] != "pending":
            return items[0]


# -- the main job --------------------------------------------------------------------------------------------------


async def test_what_is_produced_can_be_tailed_and_listed(broker: Broker) -> None:
    produced = await run(broker, "produce", "s", "--generation", "g", "--message-id", "m", "--json", stdin=NDJSON)
    assert produced.returncode == 0, produced.stderr
    result = json.loads(produced.stdout)
    tailed = await run(broker, "tail", "sessions/s", "--no-follow")
    listed = await run(broker, "messages", "s", "--json")

    facts = {"sessionId": "s", "generationId": "g", "messageId": "m", "status": "complete", "chunks": len(CHUNKS)}
    assert result == {**facts, "offset": result["offset"]}
    records = [json.loads(line) for line in tailed.stdout.splitlines()]
    assert [record["type"] for record in records] == ["generation", *["chunk"] * len(CHUNKS), "generation"]
    assert [record["value"]["chunk"] for record in records[1:-1]] == CHUNKS
    (item,) = json.loads(listed.stdout)["messages"]
    assert (item["id"], item["status"]) == ("m", "complete")
    assert json.loads(listed.stdout)["offset"] == result["offset"]


async def test_messages_are_told_to_people_without_what_steers_a_terminal(broker: Broker) -> None:
    await run(broker, "produce", "s", "--message-id", "m", stdin=NDJSON)
    async with Producer(broker.url) as producer:
        await producer.send_message("s", {"id": "u", "role": "user", "content": "Half a pair: \ud83d"})

    listed = await run(broker, "messages", "s")

    assert listed.stdout == (
        "assistant · complete · m\nHello \N{WAVING HAND SIGN}\N{REPLACEMENT CHARACTER}[2J\n\n"
        "user · complete · u\nHalf a pair: \N{REPLACEMENT CHARACTER}\n"
    )


async def test_produce_says_where_the_answer_is(broker: Broker) -> None:
    produced = await run(broker, "produce", "s", "--message-id", "m", "--format", "text", stdin='"a"\n\n"b"')

    assert produced.stdout.startswith("message m of session s is complete: 2 chunks, offset ")
    assert (produced.returncode, produced.stderr) == (0, "")


async def test_tail_begins_at_an_offset_and_ends_with_the_stream(broker: Broker) -> None:
    first = await run(broker, "produce", "s", "--format", "text", "--json", stdin='"a"')
    second = await run(broker, "produce", "s", "--format", "text", "--json", stdin='"b"')

    tailed = await run(
        broker, "tail", f"{broker.url}/v1/stream/sessions/s", "--no-follow", "--json", "--offset",
        json.loads(first.stdout)["offset"],
    )  # fmt: skip

    (batch,) = [json.loads(line) for line in tailed.stdout.splitlines()]
    assert len(batch["records"]) == 3
    assert batch["nextOffset"] == json.loads(second.stdout)["offset"]
    assert (batch["upToDate"], batch["closed"]) == (True, False)


async def test_tail_follows_until_it_is_interrupted_and_is_quiet_about_it(broker: Broker) -> None:
    await run(broker, "produce", "s", "--format", "text", stdin='"a"')
    async with await started(broker, "tail", "sessions/s") as tailing:
        for _ in range(3):
            await line_of(tailing)
        await run(broker, "produce", "s", "--format", "text", stdin='"b"')
        assert [json.loads(await line_of(tailing))["type"] for _ in range(3)] == ["generation", "chunk", "generation"]
        tailing.send_signal(signal.SIGINT)
        assert await rest_of(tailing.stderr) == ""
        assert await tailing.wait() == 130


async def test_tail_with_an_offset_file_goes_on_where_the_last_run_ended(broker: Broker, tmp_path: Path) -> None:
    tail = ("tail", "sessions/s", "--no-follow", "--offset-file", str(tmp_path / "offsets"))
    await run(broker, "produce", "s", "--format", "text", stdin='"a"')
    first = await run(broker, *tail)
    await run(broker, "produce", "s", "--format", "text", stdin='"b"')
    second, third = await run(broker, *tail), await run(broker, *tail)

    assert [line.count('"chunk":"a"') for line in first.stdout.splitlines()] == [0, 1, 0]
    assert [line.count('"chunk":"b"') for line in second.stdout.splitlines()] == [0, 1, 0]
    assert (third.stdout, third.returncode) == ("", 0)


async def test_tail_goes_on_after_the_broker_was_killed(broker: Broker) -> None:
    await run(broker, "produce", "s", "--format", "text", stdin='"a"')
    async with await started(broker, "tail", "sessions/s", "--offset", "now") as tailing:
        await broker.restart()
        seen = ""
        while "late" not in seen:
            # Until `tail` has resolved `now`, what is produced lies before it.
            await run(broker, "produce", "s", "--format", "text", stdin='"late"')
            with anyio.move_on_after(1):
                seen += await line_of(tailing)
        tailing.kill()


async def test_sessions_lists_the_latest_first_and_goes_on_live(broker: Broker) -> None:
    for session in ("a", "b", "a"):
        await run(broker, "produce", session, "--format", "text", stdin='"x"')
    listed = await run(broker, "sessions")
    assert [line.split()[1:] for line in listed.stdout.splitlines()] == [["idle", "a"], ["idle", "b"]]

    async with await started(broker, "sessions", "--live", "--json", "--limit", "1") as listing:
        assert json.loads(await line_of(listing))["sessionId"] == "a"
        async with Producer(broker.url) as producer:
            await producer.create_session("new", metadata={"title": "t"})
        told = json.loads(await line_of(listing))
        assert (told["sessionId"], told["status"], told["metadata"]) == ("new", "idle", {"title": "t"})
        listing.send_signal(signal.SIGINT)
        assert await listing.wait() == 130


# -- how an answer ends --------------------------------------------------------------------------------------------


async def test_a_line_that_is_no_json_fails_the_generation_and_keeps_what_came_before(broker: Broker) -> None:
    produced = await run(broker, "produce", "s", "--format", "text", stdin='"kept"\n{"oops"\n"never"\n')
    listed = await run(broker, "messages", "s", "--json")

    assert produced.returncode == 1
    assert produced.stderr.startswith("Error: line 2 is no JSON: ")
    (item,) = json.loads(listed.stdout)["messages"]
    assert (item["status"], item["message"]["parts"]) == ("failed", [{"type": "text", "text": "kept"}])
    assert "line 2" in item["error"]["message"]


async def test_an_interrupted_produce_keeps_what_was_read_and_is_aborted(broker: Broker) -> None:
    async with await started(broker, "produce", "s", "--format", "text") as producing:
        assert producing.stdin is not None
        await producing.stdin.send(b'"kept"\n')
        await status_when_streaming(broker, "s")
        producing.send_signal(signal.SIGINT)
        assert await producing.wait() == 130

    item = await status_when_streaming(broker, "s")
    assert (item["status"], item["message"]["parts"]) == ("aborted", [{"type": "text", "text": "kept"}])


async def test_a_stop_from_elsewhere_ends_a_produce_that_waits_for_input(broker: Broker) -> None:
    async with await started(broker, "produce", "s", "--generation", "g", "--format", "text") as producing:
        assert producing.stdin is not None
        await producing.stdin.send(b'"kept"\n')
        await status_when_streaming(broker, "s")
        async with Producer(broker.url) as producer:
            await producer.stop("s", "g")
        await producing.stdin.send(b'"late"\n')
        assert "stopped" in await rest_of(producing.stderr)
        assert await producing.wait() == 1

    assert (await status_when_streaming(broker, "s"))["status"] == "aborted"


# -- errors --------------------------------------------------------------------------------------------------------


async def test_what_is_not_there_is_an_error_with_its_code(broker: Broker) -> None:
    for arguments, code in ((("tail", "nothing"), "STREAM_NOT_FOUND"), (("messages", "s"), "SESSION_NOT_FOUND")):
        failed = await run(broker, *arguments)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith(f"Error: {code}: ")


async def test_an_unknown_format_is_an_error_with_its_code(broker: Broker) -> None:
    failed = await run(broker, "produce", "s", "--format", "morse", stdin='"-"')

    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: UNKNOWN_FORMAT: ")


@pytest.mark.parametrize("arguments", [("tail", "s"), ("messages", "s"), ("produce", "s")], ids=lambda it: it[0])
def test_without_a_broker_the_error_says_how_to_start_one(arguments: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    failed = run_at(url, arguments, '"a"')

    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"Error: no broker at {url}; start one with `streamfold serve`\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("tail",),
        ("tail", "a//b"),
        ("tail", "https://elsewhere/s"),
        ("messages", "a b"),
        ("messages", ".."),
        ("produce", "s", "--lane", ""),
        ("messages", "s", "--url", "localhost"),
        ("unknown",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_apart_from_failure(arguments: tuple[str, ...]) -> None:
    failed = run_at("http://127.0.0.1:1", arguments)

    assert (failed.returncode, failed.stdout) == (2, "")
    assert "Error: " in failed.stderr


@pytest.mark.parametrize("command", ["", "produce", "tail", "messages", "serve", "bench", "bench appends"])
def test_help_is_there_for_every_command(command: str) -> None:
    helped = run_at("http://127.0.0.1:1", (*command.split(), "--help"))

    assert helped.returncode == 0
    assert helped.stdout.startswith(f"Usage: streamfold {command}".rstrip())


def test_serve_without_the_servers_libraries_says_what_to_install() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from broker.cli import main; main(['serve'])"

    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert failed.returncode == 1
    assert "streamfold[server]" in failed.stderr
