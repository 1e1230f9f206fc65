"""The priority of threads: what can wait stands back behind those that somebody waits for."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

from broker.limits import BACKGROUND_NICE


def stand_back() -> None:
    """Have this thread run when those of a higher priority leave the core free, until it ends. Linux only.

    For work that is done without the interpreter, SQLite's or the system's, and so at the same time as the event loop:
    on one core each would take turns of some milliseconds. Elsewhere a priority is the whole process's.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + BACKGROUND_NICE)
