"""What a scheduler calls the job that this process is part of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerJob:
    """job_id: as the scheduler takes it; an element of an array is named by both of its numbers."""

    job_id: str
    restart_count: int


def scheduler_job(environ: Mapping[str, str]) -> SchedulerJob | None:
    """The Slurm job of this process, from its environment; None outside one.

    SLURM_JOB_ID of the last element of an array is the id of the whole array, so it does not name the element.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
    if not job_id:
        return None
    return SchedulerJob(job_id=job_id, restart_count=int(environ.get("SLURM_RESTART_COUNT") or 0))
