"""The logs of a run as they grow: over its attempts, its nodes and its time in a queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launcher.runs.attempts import last_attempt
from launcher.runs.layout import RunFolder
from launcher.runs.logs import agent_log, job_logs, nodes_of, rank_logs
from launcher.runs.markers import read_markers
from launcher.runs.records import GOES_ON, Status
from launcher.runs.registry import RunSummary

POLL_S = 0.3
# How a run stands is asked less often: a scheduler is shared with others.
STATUS_PERIOD_S = 2.0

Write = Callable[[bytes], None]
Say = Callable[[str], None]


@dataclass(slots=True)
class LogFollower:
    """Copies what is new in a run's logs to `write`; what is no log of the run's goes to `say`.

    rank: whose log; None for the rank that failed first, else rank 0, after what the job and the programs that start
    ranks say where no rank has said anything.
    """

    run: RunFolder
    rank: int | None
    write: Write
    say: Say
    _read: dict[Path, int] = field(default_factory=dict)
    _attempt: int = 0
    _told: str = ""

    def step(self) -> None:
        """Copy everything that is there and was not copied yet."""
        attempt = last_attempt(self.run)
        if attempt != self._attempt:
            if self._attempt:
                self._copy(self._attempt)  # its last words
                self.say(f"attempt {attempt}")
            self._attempt = attempt
        self._copy(attempt)

    def paths(self, attempt: int) -> tuple[Path, ...]:
        """The logs to copy, as far as they are there."""
        if not attempt:
            return job_logs(self.run) if self.rank is None else ()
        found = tuple(reversed(rank_logs(self.run, attempt, self.chosen(attempt))))
        if found or self.rank is not None:
            return found
        agents = (agent_log(self.run, attempt, node) for node in nodes_of(self.run, attempt))
        return (*job_logs(self.run), *(path for path in agents if path.exists()))

    def chosen(self, attempt: int) -> int:
        """The rank that is meant."""
        if self.rank is not None:
            return self.rank
        failures = read_markers(self.run, attempt).failures
        return failures[0].rank if failures else 0

    def tell(self, summary: RunSummary) -> None:
        """Say once why nothing comes: the run waits in a queue, or nobody knows."""
        if summary.status in (Status.QUEUED, Status.UNKNOWN) and summary.reason != self._told:
            self.say(f"{summary.status.value}: {summary.reason}")
        self._told = summary.reason

    def _copy(self, attempt: int) -> None:
        for path in self.paths(attempt):
            self._read[path] = self._print_from(path, self._read.get(path, 0))

    def _print_from(self, path: Path, offset: int) -> int:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return offset
        if content:
            self.write(content)
        return offset + len(content)


def follow(follower: LogFollower, summarise: Callable[[], tuple[RunSummary, bool]], *, poll_s: float = POLL_S) -> None:
    """Go on until the run has ended. summarise: how it stands, and whether that may change where it is unknown."""
    asked_s = float("-inf")
    goes_on = True
    while True:
        # Asked before copying, so that what was written up to the end is copied after it.
        if time.monotonic() - asked_s >= STATUS_PERIOD_S:
            summary, may_change = summarise()
            goes_on = summary.status in GOES_ON or (summary.status is Status.UNKNOWN and may_change)
            asked_s = time.monotonic()
            follower.tell(summary)
        follower.step()
        if not goes_on:
            return
        time.sleep(poll_s)
