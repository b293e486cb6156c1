"""Someone who follows a run from here, such as a progress bar, told of all that its ranks write."""

from __future__ import annotations

from collections.abc import Callable

from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Observer
from launcher.runs.tail import RunTail


class Observed:
    """Tells an observer what is new. note: writes an event, where the observer is no longer told."""

    def __init__(self, run: RunFolder, observer: Observer | None, note: Callable[[str, str], None]) -> None:
        self._tail = RunTail(run)
        self._observer = observer
        self._note = note

    def look(self) -> None:
        """Read what came in, and tell."""
        events, metrics = self._tail.read()
        if self._observer is None:
            return
        try:
            self._observer.update(events=events, metrics=metrics)
        except Exception as error:  # noqa: BLE001  a progress bar, or its closed terminal, must not cost a training
            self._observer = None
            self._note("progress is no longer shown", repr(error))
