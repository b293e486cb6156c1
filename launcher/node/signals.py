"""The signals by which a user asks a launcher to stop, or a scheduler a node, taken down and looked at later."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCHEDULER_SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1)

# A closing terminal, or a supervisor that signals a group and its leader, asks twice within moments and means it once.
SAME_REQUEST_S = 0.5


class StopRequests:
    """By which signal the user asked first, and whether they have asked again and mean now."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.is_forced = False
        self._first_s = 0.0

    def take(self, number: int, _frame: FrameType | None) -> None:
        """The handler: it only takes note. Work inside a signal handler meets a program in the middle of anything."""
        if self.first is None:
            self.first = signal.Signals(number)
            self._first_s = time.monotonic()
        elif number != signal.SIGHUP and time.monotonic() - self._first_s > SAME_REQUEST_S:
            self.is_forced = True


@contextmanager
def collect_stop_requests(signals: Sequence[signal.Signals] = STOP_SIGNALS) -> Iterator[StopRequests]:
    """Collect the signals for a while instead of dying of them.

    One that the launcher was told to ignore (nohup, or a job in the background of a script) stays ignored.
    Outside the main thread, where Python allows no handlers, nothing is collected.
    """
    requests = StopRequests()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, requests.take)
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
