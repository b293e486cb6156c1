"""Requests to stop: a file or a signal asks this rank, and all ranks agree on it at the end of a step (jobs.agree).

A signal reaches some ranks earlier than others, and a file is seen at different times. Nothing but setting a flag
happens inside the signal handler.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this rank has been asked to stop, and by what."""

    def __init__(self, stop_file: Path) -> None:
        self._stop_file = stop_file
        self._signal: str | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1 as requests to stop."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def cause(self) -> str | None:
        """What asked for the stop: the first line of the stop file, else a signal's name; None where nothing did.

        The file comes first, for it says why the signal was sent.
        """
        try:
            return self._stop_file.read_text(errors="replace").partition("\n")[0].strip() or "stop file"
        except FileNotFoundError:
            return self._signal

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number).name


@contextlib.contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """No process that is forked within ever hears of a stop; this one does, afterwards.

    A scheduler signals all processes of a job, and a rank still needs those that load its data to come to the end of
    its step; torch would have them die of a TERM from the moment they are forked. What is blocked is inherited as such
    by a fork, and by no other way to start a process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
