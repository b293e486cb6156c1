"""A view whose last lines are redrawn in place, on a terminal that can."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from launcher.report.console import is_live


class Redrawn:
    """A context manager: leaving it cleans the terminal. Where nothing can be redrawn, _live is None."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if is_live(self._console):
            # Refreshed by its view alone, so that no thread draws while the work is being stopped.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
