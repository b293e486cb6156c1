"""Go on with a run from its newest complete checkpoint; what cannot go on is refused before anything is queued."""

from __future__ import annotations

from launcher.errors import InputError, Problem
from launcher.runs.attempts import last_attempt
from launcher.runs.called import run_command
from launcher.runs.checkpoints import difference_to, newest_checkpoint
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.records import GOES_ON, Status, Submission
from launcher.runs.registry import RunSummary
from launcher.spec import JobSpec, read_job


def check_resumable(run: RunFolder, summary: RunSummary, submission: Submission | None) -> str:
    """What it will go on from, in words. Raises InputError for what cannot, SubmitError where the plan changed."""
    read_launch_plan(run)
    if summary.status is Status.FINISHED:
        raise _refused(run, "is finished", f"its result is in {run.result}; launch anew")
    if summary.status in GOES_ON and not (submission is not None and submission.job_id is None):
        way_out = f"{run_command('logs -f', run.root)} follows it, {run_command('cancel', run.root)} stops it"
        raise _refused(
            run, f"is {summary.status} already" + (f" ({summary.reason})" if summary.reason else ""), way_out
        )
    return _going_on(run, read_job(run.job))


def _going_on(run: RunFolder, spec: JobSpec) -> str:
    newest = newest_checkpoint(run)
    if newest is None:
        return "starting again: it has no complete checkpoint" if last_attempt(run) else "starting it"
    wrong = difference_to(newest, run_id=run.root.name, spec=spec)
    if wrong is not None:
        where = run.checkpoints / f"checkpoint-{newest.step}"
        raise _refused(run, f"cannot go on from checkpoint-{newest.step}, which {wrong}", f"move {where} away")
    return f"going on after step {newest.step}"


def _refused(run: RunFolder, rule: str, way_out: str) -> InputError:
    return InputError([Problem(field="run", value=run.root.name, rule=rule, way_out=way_out)])
