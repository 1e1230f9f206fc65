"""Closed-loop load by `wrk`: one that costs less than any server, Rust's too, so that the server is what is measured.

Every connection sends its next request when the one before is answered. What that hides is told by `open_loop`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.runner import Absent
from benchmarks.workload import Invalid

_WRK: Final = "wrk"
# Requests are made beforehand, and go to the streams in turn.
_SCRIPT: Final = """
local requests = {}
function init(args)
  local body
  if args[1] ~= "-" then
    local file = io.open(args[1], "rb")
    body = file:read("*a")
    file:close()
  end
  local method, headers = body and "POST" or "GET", {["Content-Type"] = "application/json"}
  for i = 2, #args do
    requests[#requests + 1] = wrk.format(method, args[i], headers, body)
  end
end
local sent = 0
function request()
  sent = sent + 1
  return requests[sent % #requests + 1]
end
function done(summary, latency)
  local errors = summary.errors
  local form = '{"requests":%d,"duration_us":%d,"bytes":%.0f,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}'
  io.write('\\nSEEN ' .. string.format(form, summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout) .. '\\n')
end
"""


class Seen(NamedTuple):
    """What a run of wrk saw."""

    requests: int
    requests_per_s: float
    bytes_per_s: float
    p50_ms: float
    p99_ms: float


def version() -> str | None:
    """Of the wrk that is installed; None without one."""
    if shutil.which(_WRK) is None:
        return None
    told = subprocess.run([_WRK, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    return told.removeprefix("wrk ").split(" [")[0].split(" Copyright")[0].strip()


def run(
    port: int, targets: Sequence[str], *, connections: int, seconds: float, folder: Path, body: bytes | None = None
) -> Seen:
    """POST `body`, or GET without one, over so many connections, and see.

    Raises Invalid when anything but a 2xx comes back, and Absent without a wrk.
    """
    if shutil.which(_WRK) is None:
        raise Absent("wrk is not installed: deploy/setup --bench")
    script, payload = folder / "wrk.lua", folder / "body"
    script.write_text(_SCRIPT)
    payload.write_bytes(body or b"")
    command = [_WRK, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    arguments = ["-" if body is None else str(payload), *targets]
    process = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/", "--", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    found = re.search(r"^SEEN (.*)$", process.stdout, re.MULTILINE)
    if process.returncode or found is None:
        raise Invalid(f"wrk says: {process.stdout}{process.stderr}")
    told = json.loads(found[1])
    if told["refused"] or told["broken"] or not told["requests"]:
        raise Invalid(f"wrk saw refusals or broken connections: {told}")
    seconds_run = told["duration_us"] / 1e6
    return Seen(
        requests=told["requests"],
        requests_per_s=told["requests"] / seconds_run,
        bytes_per_s=told["bytes"] / seconds_run,
        p50_ms=told["p50_us"] / 1000,
        p99_ms=told["p99_us"] / 1000,
    )
