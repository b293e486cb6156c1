"""The launcher watch: a rank whose launcher is gone ends itself, so that no orphan keeps a GPU.

PR_SET_PDEATHSIG does not reach through `deepspeed`, whose ranks are grandchildren; a look at /proc does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from jobs.start import Launcher

EXIT_ORPHANED = 70  # EX_SOFTWARE; nobody is left to read it
PERIOD_S = 1.0


def is_alive(launcher: Launcher) -> bool:
    """Whether this very process still runs; another one with its pid has another start time."""
    try:
        stat = Path(f"/proc/{launcher.pid}/stat").read_text()
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()  # the name in field 2 may hold spaces and brackets
    state, start_ticks = fields[0], int(fields[19])  # fields 3 and 22 of proc(5)
    return state not in ("Z", "X") and start_ticks == launcher.start_ticks


def watch(launcher: Launcher) -> threading.Thread:
    """Start the daemon thread that ends this process when the launcher is gone."""
    thread = threading.Thread(target=_watch, args=(launcher,), name="launcher-watch", daemon=True)
    thread.start()
    return thread


def _watch(launcher: Launcher) -> None:
    while is_alive(launcher):
        time.sleep(PERIOD_S)
    print(f"fitlaunch: the launcher (pid {launcher.pid}) is gone; this rank ends", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_ORPHANED)  # a rank inside a collective cannot be ended by an exception
