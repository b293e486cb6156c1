"""A host that is gone in the middle of a run: seen from the launcher, written down where its own agent cannot."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from launcher.runs.layout import RunFolder
from launcher.runs.records import NodeEnd, write_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A host that no longer answers, or whose agent ended without saying how its ranks did. why: in ssh's words."""

    node: int
    host: str
    time_s: float
    why: str

    def __str__(self) -> str:
        return f"{self.host} was lost: {self.why}"


def write_lost(run: RunFolder, attempt: int, started_at_s: float, lost: Lost) -> None:
    """Write the end of the node in its place; the agents of the other nodes end their ranks when they see it."""
    end = NodeEnd(
        attempt=attempt,
        node_rank=lost.node,
        host=lost.host,
        started_at_s=started_at_s,
        ended_at_s=time.time(),
        exit_code=None,
        deaths=(),
        ended_by=lost.why,
        is_lost=True,
    )
    with contextlib.suppress(OSError):
        write_record(run.node_end(attempt, lost.node), end)
