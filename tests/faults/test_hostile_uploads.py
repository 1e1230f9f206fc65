"""Uploads whose bodies are made to cost a broker memory: refused, and paid for with little."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from broker.limits import KIB, MIB
from tests.faults.upload_scene import CHUNKS, LINES, NDJSON, staged

GROWTH_MAX = 128 * MIB
"""What one body of bare digits costs for a moment, 64 bytes a chunk, and half as much again; the bombs hold more."""


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * KIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of another process in a file")
async def test_hostile_uploads_are_refused_and_cost_little_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(160 * MIB), 9)
    hostile: dict[str, tuple[bytes, dict[str, str], str]] = {
        "bomb": (bomb, {"content-encoding": "gzip"}, "BODY_TOO_LARGE"),
        "bomb of empty lines": (gzip.compress(b"\n" * 32 * MIB, 9), {"content-encoding": "gzip"}, "BODY_TOO_LARGE"),
        "endless line": (b'"' + b"x" * 5 * MIB, {}, "BODY_TOO_LARGE"),
        "endless number": (b"1" * 5 * MIB, {}, "BODY_TOO_LARGE"),
        "deep": (b"[" * 100_000 + b"]" * 100_000 + b"\n", {}, "INVALID_JSON"),
        "not UTF-8": (b'"\xff\xfe"\n', {}, "INVALID_JSON"),
        "many chunks": (b"[" + b"1," * MIB + b"1]\n", {}, "BODY_TOO_LARGE"),
    }
    async with staged(tmp_path) as scene:
        generation = await scene.session("s")
        await scene.batches(generation, 0, LINES[:1])
        before = resident_bytes(scene.broker.pid)
        for name, (body, coding, code) in hostile.items():
            headers = {**NDJSON, **coding, "producer-seq": "1"}
            answer = await scene.http.post(f"{generation}/chunks", content=body, headers=headers)
            assert answer.json()["code"] == code, name
            mid = await scene.http.post(  # the same behind a good line
                f"{generation}/chunks?format=text",
                content=LINES[0] + b"\n" + body,
                headers={**NDJSON, "producer-seq": "0"},
            )
            if not coding:
                assert [next(iter(json.loads(line))) for line in mid.text.splitlines()] == ["seq", "error"], name
                assert json.loads(mid.text.splitlines()[-1])["error"]["code"] == code, name
        plain = {"content-type": "application/json", "content-encoding": "gzip", "producer-seq": "1"}
        for method, target in (("POST", f"{generation}/chunks"), ("PUT", "/v1/stream/raw")):
            answer = await scene.http.request(method, target, content=bomb, headers=plain)
            assert answer.json()["code"] == "BODY_TOO_LARGE"
        assert resident_bytes(scene.broker.pid) - before < GROWTH_MAX
        assert await scene.chunks(generation) == CHUNKS[:1]
        assert (await scene.http.get("/health")).status_code == 200
