"""Which job may run under a submission: the first that has claimed it in the run folder."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.runs.layout import RunFolder
from launcher.runs.records import Submission, read_record, write_exclusively


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The job that holds a submission."""

    submission: int
    owner: str


def claim(run: RunFolder, job_id: str) -> Claim:
    """The claim that this job made already, when it was started first; otherwise it claims the newest submission,
    unless another job has."""
    for path in sorted(run.cancelled.parent.glob("job-*")):
        name = path.name.removeprefix("job-")
        if name.isdecimal() and path.read_text().strip() == job_id:
            return Claim(submission=int(name), owner=job_id)
    submission = read_record(run.submission, Submission)
    number = 1 if submission is None else submission.number
    path = run.job_claim(number)
    write_exclusively(path, job_id + "\n")
    return Claim(submission=number, owner=path.read_text().strip())
