"""The launcher watch: a rank whose launcher is gone ends itself, so that no orphan keeps a GPU.

PR_SET_PDEATHSIG does not reach through `deepspeed`, whose ranks are grandchildren; a look at /proc does. A launcher on
another host cannot be looked at: it renews a lease, a file in the run folder, for as long as it lives.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jobs.start import Launcher, Start

EXIT_ORPHANED = 70  # EX_SOFTWARE; nobody is left to read it
PERIOD_S = 1.0
LEASE_S = 30.0
"""How long a lease may stay as it is. By this rank's own clock, for those of two hosts differ."""


class Lease:
    """A lease as this rank sees it. A file that is gone, or cannot be read, is not renewed."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen: bytes | None = None
        self._renewed_at_s = clock()

    def is_held(self) -> bool:
        """Whether it was renewed not long ago."""
        text = self._read()
        if text is not None and text != self._seen:
            self._seen = text
            self._renewed_at_s = self._clock()
        return self._clock() - self._renewed_at_s < LEASE_S

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None


def is_alive(launcher: Launcher) -> bool:
    """Whether this very process still runs; another one with its pid has another start time."""
    try:
        stat = Path(f"/proc/{launcher.pid}/stat").read_text()
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()  # the name in field 2 may hold spaces and brackets
    state, start_ticks = fields[0], int(fields[19])  # fields 3 and 22 of proc(5)
    return state not in ("Z", "X") and start_ticks == launcher.start_ticks


def watch(start: Start) -> None:
    """Start the daemon thread that ends this process when its launcher is gone, as far as it was told of one."""
    if start.launcher is not None:
        launcher = start.launcher
        _watch(lambda: is_alive(launcher), f"the launcher (pid {launcher.pid}) is gone")
    if start.lease is not None:
        lease = Lease(start.lease)
        _watch(lease.is_held, f"the launcher has not renewed {start.lease} for {LEASE_S:.0f} s")


def _watch(goes_on: Callable[[], bool], otherwise: str) -> None:
    threading.Thread(target=_wait, args=(goes_on, otherwise), name="launcher-watch", daemon=True).start()


def _wait(goes_on: Callable[[], bool], otherwise: str) -> None:
    while goes_on():
        time.sleep(PERIOD_S)
    print(f"fitlaunch: {otherwise}; this rank ends", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_ORPHANED)  # a rank inside a collective cannot be ended by an exception
