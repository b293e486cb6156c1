"""Hand a run to Slurm, exactly once, however often and from wherever it is tried.

The run folder comes first, and in it, before sbatch is run, a submission without a job id. Whoever meets one of those
(sbatch was killed, or nobody answered in time) asks Slurm for the job by its name and takes what is there; Slurm is
known to have accepted jobs from an sbatch that heard nothing of it. What is sent again has the same number, and of two
jobs of one number only one starts (see slurm/job.sh.j2).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from launcher.errors import SubmitError
from launcher.render.sbatch import job_name
from launcher.render.types import LaunchPlan
from launcher.runs.attempts import last_attempt, refuse_if_finished
from launcher.runs.called import run_command
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.records import Status, Submission, read_record, write_record
from launcher.runs.registry import find_job
from launcher.runs.state import write_state
from launcher.scheduler.client import ASK_TIMEOUT_S, SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.environment import job_environment
from launcher.scheduler.jobs import Job, by_id, my_jobs, named
from launcher.spec import JobSpec
from launcher.targets.site import with_meaning

# A controller that hung works off what it had been sent before it answers anybody new, but not in order.
SETTLE_S = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A run in the hands of Slurm. is_new: it was sent now; otherwise it was there already."""

    submission: Submission
    is_new: bool


def submit_run(run: RunFolder, environ: Mapping[str, str], *, timeout_s: float = ASK_TIMEOUT_S) -> Submitted:
    """Queue a rendered run, or one that has ended and is to go on.

    Raises InputError for a run that is finished; SubmitError when its plan changed or Slurm refuses it, and, as
    SchedulerSilent, when Slurm does not answer: then it may be queued all the same, and trying again is safe.
    """
    launch = read_launch_plan(run)
    spec = launch.job
    with hold_lock(run.lock, what=f"run {launch.run_id}"):
        refuse_if_finished(run)
        before = read_record(run.submission, Submission)
        try:
            found = _existing(run, launch, spec, before)
        except SchedulerSilent as silent:
            again = f"`{run_command('resume', run.root)}` tries again"
            raise SchedulerSilent(f"Slurm does not answer, and nothing was sent ({silent}): {again}") from None
        if found is not None:
            return Submitted(submission=found, is_new=False)
        return Submitted(submission=_send(run, launch, spec, before, environ, timeout_s), is_new=True)


def parse_job_id(text: str) -> str:
    """The id in what `sbatch --parsable` prints: ID, or ID;CLUSTER. Raises SubmitError where there is none."""
    lines = text.strip().splitlines()
    job_id = lines[-1].partition(";")[0] if lines else ""
    if not job_id.isdecimal():
        raise SubmitError(f"sbatch names no job, but says: {text.strip() or 'nothing'}")
    return job_id


def _existing(run: RunFolder, launch: LaunchPlan, spec: JobSpec, before: Submission | None) -> Submission | None:
    """The submission that Slurm still has, written down where nobody had heard of its id; None where there is none."""
    job = _living(my_jobs(), launch, before)
    if job is None and before is not None and before.job_id is None:
        time.sleep(SETTLE_S)
        job = _living(my_jobs(), launch, before)
    if job is None:
        return None
    if before is not None and before.job_id == job.job_id:
        return before
    known = before or Submission(number=1, cluster=spec.cluster.name, job_name=job.name, time_s=time.time())
    adopted = dataclasses.replace(known, job_name=job.name, job_id=job.job_id)
    write_record(run.submission, adopted)
    return adopted


def _living(jobs: Sequence[Job], launch: LaunchPlan, before: Submission | None) -> Job | None:
    """The job that was written down, or one of the run's own name that somebody queued by hand."""
    known = None if before is None else find_job(by_id(jobs), before)
    mine = (*(() if known is None else (known,)), *named(jobs, job_name(launch.run_id)))
    return next((job for job in mine if not job.is_over), None)


def _send(
    run: RunFolder,
    launch: LaunchPlan,
    spec: JobSpec,
    before: Submission | None,
    environ: Mapping[str, str],
    timeout_s: float,
) -> Submission:
    asked = Submission(
        number=next_submission(run, before),
        cluster=spec.cluster.name,
        job_name=job_name(launch.run_id),
        time_s=time.time(),
    )
    attempt = last_attempt(run)
    write_record(run.submission, asked)
    run.cancelled.unlink(missing_ok=True)
    write_state(run, Status.QUEUED, attempt=attempt)  # now: once it is sent, the job has the word
    try:
        said = ask(
            (*launch.submit, str(asked.number)),
            env=job_environment(environ, spec.cluster.environment),
            timeout_s=timeout_s,
        )
    except SchedulerRefused as refused:
        take_back(run, before)
        reason = with_meaning(str(refused))
        write_state(run, Status.FAILED, attempt=attempt, exit_code=SubmitError.exit_code, reason=f"Slurm: {reason}")
        raise SubmitError(f"Slurm refuses run {launch.run_id}: {reason}") from None
    except SchedulerSilent as silent:
        raise SchedulerSilent(
            f"{silent}: run {launch.run_id} may be queued all the same; `{run_command('resume', run.root)}` looks for "
            "it first, and never queues it twice"
        ) from None
    sent = dataclasses.replace(asked, job_id=parse_job_id(said))
    write_record(run.submission, sent)
    return sent


def next_submission(run: RunFolder, before: Submission | None) -> int:
    """The same number where it is not known whether a job has it, unless one has had it since."""
    if before is None:
        return 1
    was_used = before.job_id is not None or run.job_claim(before.number).exists()
    return before.number + 1 if was_used else before.number


def take_back(run: RunFolder, before: Submission | None) -> None:
    """Slurm has said no: there is no job to look for."""
    if before is None:
        run.submission.unlink(missing_ok=True)
    else:
        write_record(run.submission, before)
