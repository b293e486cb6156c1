"""The fence: ranks of an attempt that was given up may still run, and must leave what the next one works on alone.

It happens where a node's link is cut, or its daemon ends: the scheduler starts the run elsewhere, and the old ranks
know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.runs.attempts import superseded_by
from launcher.runs.layout import RunFolder


class Superseded(RuntimeError):
    """A later attempt of this run was started: this one writes nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Asks whether this attempt may still write. Only rank 0 does: it writes for all."""

    run: RunFolder
    attempt: int

    def is_down(self) -> bool:
        """Whether this attempt may not write any more."""
        return superseded_by(self.run, self.attempt) is not None

    def check(self) -> None:
        """Raise Superseded unless this attempt may write."""
        newer = superseded_by(self.run, self.attempt)
        if newer is not None:
            raise Superseded(f"attempt {self.attempt} was superseded by attempt {newer}: it writes nothing more")
