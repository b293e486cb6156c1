"""A host that is gone in the middle of a run: seen from the launcher, written down where its own agent cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass

from launcher.runs.layout import RunFolder
from launcher.runs.records import NodeEnd, read_record, write_record


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
    """Write the end of the node in its agent's place; the agents of the other nodes end their ranks when they see it.

    An agent that is cut off may yet write how its ranks ended; the loss of its host is why.
    """
    with contextlib.suppress(OSError):
        own = read_record(run.node_end(attempt, lost.node), NodeEnd)
        end = own or NodeEnd(
            attempt=attempt,
            node_rank=lost.node,
            host=lost.host,
            started_at_s=started_at_s,
            ended_at_s=time.time(),
            exit_code=None,
            deaths=(),
        )
        write_record(run.node_end(attempt, lost.node), dataclasses.replace(end, ended_by=lost.why, is_lost=True))
