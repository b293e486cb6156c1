"""How a run that a scheduler starts stands: from what the ranks left, then what the scheduler says. Pure.

Nothing is called failed that is not proven: a scheduler that does not answer, or that has forgotten a job, proves
nothing by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from launcher.runs.markers import Markers
from launcher.runs.records import AttemptStart, NodeEnd, RunState, Status, Submission
from launcher.scheduler.jobs import Job

# What Slurm calls a job that ended as it should.
COMPLETED = "COMPLETED"
# squeue has nothing to say: no reason, no start known yet.
NOTHING = frozenset({"", "None", "N/A", "Unknown"})


class Queue(Protocol):
    """The scheduler as far as runs ask it. None: it does not answer."""

    def jobs(self) -> Mapping[str, Job] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """All that decides how a submitted run stands.

    attempt: the newest one, 0 where there is none; start, markers, ends, may_go_on (a requeue was asked for) are its.
    refused: why the newest start came to nothing, where it did. job: what the scheduler says of the submission's job,
    None where it does not know it; is_silent: it does not answer.
    """

    submission: Submission
    attempt: int
    num_nodes: int
    markers: Markers
    state: RunState | None = None
    start: AttemptStart | None = None
    ends: tuple[NodeEnd, ...] = ()
    may_go_on: bool = False
    refused: str = ""
    is_cancelled: bool = False
    job: Job | None = None
    is_silent: bool = False

    @property
    def has_started(self) -> bool:
        """Whether the newest attempt belongs to the newest submission."""
        return self.start is not None and self.start.submission == self.submission.number

    @property
    def has_ended(self) -> bool:
        """Whether every node of the attempt has said how its ranks ended."""
        return self.has_started and len(self.ends) == self.num_nodes


def queued_status(run: Queued) -> tuple[Status, str]:
    """The status, and what else there is to say."""
    if run.markers.finished is not None:
        return Status.FINISHED, ""
    if run.job is not None and run.job.is_waiting:
        return Status.QUEUED, waiting_words(run.job)
    if run.job is not None and run.job.is_live:
        return Status.RUNNING, _running_words(run, run.job)
    if run.is_cancelled:
        return _cancelled(run)
    return _ended(run) if run.has_started else _never_started(run)


def waiting_words(job: Job) -> str:
    """'job 17 waits (Resources), expected to start 2026-11-22T03:15:02'."""
    reason = "" if job.reason in NOTHING else f" ({job.reason})"
    start = "" if job.start in NOTHING else f", expected to start {job.start}"
    hint = ", which does not come by itself" if job.is_stuck else ""
    return f"job {job.job_id} waits{reason}{hint}{start}"


def _running_words(run: Queued, job: Job) -> str:
    where = f" on {job.nodes}" if job.nodes else ""
    if run.is_cancelled:
        return f"job {job.job_id}{where}: being cancelled"
    if job.state != "RUNNING":
        return f"job {job.job_id}{where}: {job.state.lower()}"
    return f"job {job.job_id}{where}" + ("" if run.has_started else ": starting")


def _cancelled(run: Queued) -> tuple[Status, str]:
    stopped = run.markers.stopped
    how = "" if stopped is None else f"stopped after step {stopped.step}"
    if run.is_silent and run.has_started and not run.has_ended:
        return Status.UNKNOWN, "cancelled, but the scheduler does not answer: its ranks may still run"
    return Status.CANCELLED, how


def _never_started(run: Queued) -> tuple[Status, str]:
    """The newest submission has left no attempt."""
    name = _name(run)
    if run.job is not None:
        why = f": {run.refused}" if run.refused else f": {_over(run.job)}"
        return Status.FAILED, f"{name} ended before any rank was started{why}"
    if run.submission.job_id is None:
        return Status.UNKNOWN, "sbatch has not answered: it may be queued (fitlaunch resume asks, and sends it once)"
    if run.is_silent:
        return Status.UNKNOWN, f"the scheduler does not answer: {name} may be queued"
    return Status.UNKNOWN, f"the scheduler knows no {name} any more, and it left no sign"


def _ended(run: Queued) -> tuple[Status, str]:
    """The job is over, or nobody knows."""
    name = _name(run)
    stopped = run.markers.stopped
    if stopped is not None:
        how = f"stopped after step {stopped.step} ({stopped.cause})"
        if run.is_silent and run.may_go_on:
            return Status.UNKNOWN, f"{how}; the scheduler does not answer: it may be queued again"
        return Status.STOPPED, how
    state = run.state
    if state is not None and state.attempt == run.attempt and state.status is not Status.RUNNING:
        return state.status, state.reason
    if run.job is not None:
        return Status.FAILED, f"{name}: {_over(run.job)}"
    if run.has_ended:
        return Status.FAILED, f"the ranks of {name} ended without a result"
    if run.is_silent:
        return Status.UNKNOWN, f"the scheduler does not answer: {name} may be running"
    left = run.num_nodes - len(run.ends)
    return Status.UNKNOWN, f"the scheduler knows no {name} any more, and {left} of {run.num_nodes} nodes left no end"


def _name(run: Queued) -> str:
    return "job" if run.submission.job_id is None else f"job {run.submission.job_id}"


def _over(job: Job) -> str:
    """'TIMEOUT', 'FAILED (NonZeroExitCode)'."""
    return job.state if job.reason in NOTHING else f"{job.state} ({job.reason})"
