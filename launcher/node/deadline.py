"""When to end something by force, and why."""

from __future__ import annotations

import time


class Deadline:
    """The earliest that was set counts, and so does its reason."""

    def __init__(self) -> None:
        self.why = ""
        self._at_s: float | None = None

    def set(self, grace_s: float, why: str) -> None:
        """In so many seconds from now."""
        at_s = time.monotonic() + grace_s
        if self._at_s is None or at_s < self._at_s:
            self._at_s, self.why = at_s, why

    @property
    def has_come(self) -> bool:
        return self._at_s is not None and time.monotonic() >= self._at_s
