"""Wait for something that nobody tells of: a file of another host's, a job that is over, a port."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, timeout_s: float, poll_s: float) -> bool:
    """Whether it came about in time. It is looked at once at least."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= end_s:
            return False
        time.sleep(poll_s)
    return True
