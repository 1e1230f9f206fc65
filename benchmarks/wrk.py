"""The same requests from `wrk`, where it is installed: what shows that our own load is not the bottleneck."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.workload import Batches, Invalid

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
"""


def installed() -> bool:
    """Whether there is a `wrk` to run."""
    return shutil.which("wrk") is not None


def requests_per_s(port: int, batches: Batches, connections: int, measured_s: float, folder: Path) -> float:
    """What `wrk` gets. Raises Invalid when anything but a 2xx comes back."""
    body, script = folder / "body", folder / "post.lua"
    body.write_bytes(batches.body)
    script.write_text(_SCRIPT.format(body=body))
    url = f"http://127.0.0.1:{port}{batches.target}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(measured_s))}s", "-s", str(script), url]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=measured_s + 30).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    if found is None or "Non-2xx" in told or "Socket errors" in told:
        raise Invalid(f"wrk says: {told}")
    return float(found[1])
