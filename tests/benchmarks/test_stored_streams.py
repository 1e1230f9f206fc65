"""The folder of streams that nobody uses is one that a broker starts over."""

from pathlib import Path

from benchmarks.stored_streams import create
from broker import Settings, create_app


async def test_streams_that_were_filled_in_are_all_there_after_a_start(tmp_path: Path) -> None:
    await create(tmp_path, 30)
    async with (app := create_app(Settings(data_dir=tmp_path))).running():
        streams = [await app.partition.stream(f"stored/{number}") for number in range(31)]
    assert [None if stream is None else stream.tail for stream in streams] == [1] * 30 + [None]
