"""A trace while it is made: one line that tells what it is at, on a terminal; two lines in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

WHAT = "tracing the job on fake tensors"
FAILED = "the job could not be traced: the closed form answers, less sure of itself"
SKIPPED_BY = "plan.by=closed_form plans without"


class TraceScreen:
    """Where a trace shows itself; nothing is shown before it has something to say, as one from the cache has not.

    console: None shows no progress, but complaints go to stderr all the same.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._status: Status | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While a trace is made."""
        try:
            yield
        finally:
            if self._status is not None:
                self._status.stop()
            self._status = None

    def progress(self, text: str) -> None:
        """What the trace is at."""
        if self._console is None:
            return
        if self._status is None:
            line = Text(f"{WHAT} ({SKIPPED_BY})", style="dim")
            if not self._console.is_terminal:
                self._console.print(line)
            self._status = self._console.status(line)
            if self._console.is_terminal:
                self._status.start()
        self._status.update(Text(f"{WHAT}: {text}", style="dim"))

    def complain(self, reason: str) -> None:
        """There is no trace, and why."""
        console = self._console or Console(stderr=True)
        console.print(
            Text("the job could not be traced: the closed form answers, less sure of itself", style="bold red")
        )
        console.print(Text(reason, style="red"))
