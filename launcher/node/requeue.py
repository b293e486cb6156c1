"""Whether a job that has ended is to be queued again, decided by its head node from what the ranks left. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from launcher.runs.records import Stopped
from launcher.runs.stopping import TIME_LIMIT
from launcher.spec import SlurmSpec

ASKED_TO_GO_ON = (TIME_LIMIT, signal.SIGUSR1.name)
"""Causes of a stop after which the run goes on: our own request before the time limit, by file or by signal. TERM is
none of them, for a person's cancel is one; after a preemption Slurm itself queues the job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether to queue it again, and why or why not, for a person."""

    is_due: bool
    why: str


def decide(
    stopped: Stopped | None,
    slurm: SlurmSpec,
    *,
    num_attempts: int,
    step_before: int | None,
    step_now: int | None,
    is_cancelled: bool,
) -> Decision:
    """num_attempts: of this submission so far, this one included. step_before, step_now: of the newest complete
    checkpoint when the attempt began, and now."""
    if stopped is None:
        return Decision(is_due=False, why="the ranks did not stop in order")
    if is_cancelled:
        return Decision(is_due=False, why="the run was cancelled")
    if stopped.cause not in ASKED_TO_GO_ON:
        return Decision(is_due=False, why=f"it was stopped by {stopped.cause}, not at its time limit")
    if not slurm.requeue:
        return Decision(is_due=False, why="cluster.requeue=false")
    if num_attempts >= slurm.max_attempts:
        return Decision(is_due=False, why=f"this was the last of {slurm.max_attempts} attempts (cluster.max_attempts)")
    if step_now is None or (step_before is not None and step_now <= step_before):
        return Decision(is_due=False, why="it saved no new checkpoint, and would end here again")
    return Decision(is_due=True, why=f"it goes on after step {step_now}")
