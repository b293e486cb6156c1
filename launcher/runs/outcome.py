"""How an attempt of a run ended, as read from the markers in its folder; and who may watch it on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.runs.diagnosis.types import Diagnosis
from launcher.runs.records import EvalMetrics, Event, Failed, Finished, RankMeasurement, Status, Stopped, TrainMetrics

Metrics = TrainMetrics | EvalMetrics


class Observer(Protocol):
    """Someone who follows a run while it goes on, such as a progress bar.

    update is called about five times a second from the thread that follows the run, with what came in since
    the last call (often nothing), and once more after the ranks have ended. It must return quickly and not raise.
    """

    def update(self, *, events: Sequence[Event], metrics: Sequence[Metrics]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one attempt. status and exit_code follow from the markers, never from an exit status.

    exit_code: 0 finished; 130 stopped by the user; 5 failed, or stopped although nobody here asked for it.
    failures: what the ranks wrote about themselves, the earliest first.
    first_cause: one sentence for a person; empty when the run finished. diagnosis: what more is known, of a failure.
    log_tail: the last lines of the log of the rank (or of the program) that failed first.
    """

    run_dir: Path
    status: Status
    exit_code: int
    attempt: int
    finished: Finished | None
    stopped: Stopped | None
    failures: tuple[Failed, ...]
    first_cause: str
    log_tail: tuple[str, ...]
    measurements: tuple[RankMeasurement, ...]
    diagnosis: Diagnosis | None = None
