"""Whether a start of a run may go on, asked by its head node before anything else. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import JobFailed
from launcher.runs.records import AttemptStart

FRUITLESS_ATTEMPTS = 2
"""Attempts in a row without a new checkpoint after which a run is not started again: a third would end as they did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the head node finds. owner: the job that holds the submission, this one included; None without a scheduler.
    before: the accepted attempts of this submission so far, in order. checkpoint_attempt: which attempt completed the
    newest checkpoint, None where there is none. superseded_by: a later attempt that was accepted. finished_by: one
    that has done all the work, maybe on nodes that the scheduler had given up."""

    attempt: int
    submission: int | None
    job_id: str | None
    owner: str | None
    is_cancelled: bool
    superseded_by: int | None
    finished_by: int | None
    before: tuple[AttemptStart, ...]
    max_attempts: int | None
    checkpoint_attempt: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a start comes to nothing. exit_code 0: it should never have been; the run is none the worse."""

    reason: str
    exit_code: int


def refusal(found: Circumstances) -> Refusal | None:
    """The first reason against this start; None where it may go on."""
    if found.is_cancelled:
        return Refusal(reason="the run was cancelled; fitlaunch resume starts it again", exit_code=0)
    if found.owner is not None and found.owner != found.job_id:
        reason = f"submission {found.submission} belongs to job {found.owner}; this is job {found.job_id}"
        return Refusal(reason=reason, exit_code=0)
    if found.superseded_by is not None:
        return Refusal(reason=f"superseded by attempt {found.superseded_by}", exit_code=0)
    if found.finished_by is not None:
        return Refusal(reason=f"attempt {found.finished_by} has finished the run", exit_code=0)
    if found.max_attempts is not None and len(found.before) >= found.max_attempts:
        reason = f"it was started {len(found.before)} times, which is all that cluster.max_attempts allows"
        return Refusal(reason=reason, exit_code=JobFailed.exit_code)
    if _is_fruitless(found):
        numbers = " and ".join(str(start.attempt) for start in found.before[-FRUITLESS_ATTEMPTS:])
        reason = f"attempts {numbers} ended without a new checkpoint, and another would as well"
        return Refusal(reason=reason, exit_code=JobFailed.exit_code)
    return None


def _is_fruitless(found: Circumstances) -> bool:
    """Only attempts that a scheduler repeated count: a person who submits the run again knows what they do."""
    if found.submission is None or len(found.before) < FRUITLESS_ATTEMPTS:
        return False
    latest = [start.attempt for start in found.before[-FRUITLESS_ATTEMPTS:]]
    return found.checkpoint_attempt is None or found.checkpoint_attempt < min(latest)
