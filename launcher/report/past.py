"""The outcome of a run that has ended, put together from its folder; its launcher need not have lived to see it."""

from __future__ import annotations

from launcher.errors import InputError, Problem
from launcher.runs.called import run_argument, run_command
from launcher.runs.diagnosis.diagnose import diagnose
from launcher.runs.diagnosis.read import diagnose_attempt, read_diagnosis, read_evidence
from launcher.runs.diagnosis.types import Diagnosis, SchedulerWord
from launcher.runs.layout import RunFolder
from launcher.runs.logs import log_tail
from launcher.runs.markers import has_failure, read_markers
from launcher.runs.outcome import Outcome
from launcher.runs.records import ENDED, Status
from launcher.runs.registry import RunSummary, read_submission

EXIT_CODES = {Status.FINISHED: 0, Status.STOPPED: 130, Status.CANCELLED: 130}


def past_outcome(run: RunFolder, summary: RunSummary, word: SchedulerWord | None = None) -> Outcome:
    """How the newest attempt ended, of a run that stands as summarised; word: what the scheduler says of its job.

    Raises InputError for a run that has not ended, or of which that is unknown.
    """
    if summary.status not in ENDED:
        rule = f"has not ended: it is {summary.status}" + (f" ({summary.reason})" if summary.reason else "")
        way_out = f"{run_command('status', summary.run_dir)} says how it stands"
        raise InputError([Problem(field="run", value=summary.run_id, rule=rule, way_out=way_out)])
    markers = read_markers(run, summary.attempt)
    failed = summary.status is Status.FAILED
    found = failure_of(run, summary, word)
    tail = log_tail(run, summary.attempt, None) if found is None else found.log_tail
    return Outcome(
        run_dir=run.root,
        status=summary.status,
        exit_code=EXIT_CODES.get(summary.status, 5) if summary.exit_code is None else summary.exit_code,
        attempt=summary.attempt,
        finished=markers.finished,
        stopped=markers.stopped,
        failures=markers.failures,
        first_cause=summary.reason if found is None else found.what,
        log_tail=tail if failed else (),
        measurements=markers.measurements,
        diagnosis=found,
    )


def failure_of(run: RunFolder, summary: RunSummary, word: SchedulerWord | None = None) -> Diagnosis | None:
    """The first cause of a run that has failed; None where its launcher, who saw it, gave another reason.

    A run that was ended by force on this host has ranks that were killed: no diagnosis could tell by whom.
    """
    if summary.status is not Status.FAILED:
        return None
    if not summary.attempt:  # nothing but the job's own output, and no folder to keep it in
        is_queued = read_submission(run) is not None
        return diagnose(read_evidence(run, 0, word=word), run=run_argument(run.root)) if is_queued else None
    is_known = read_diagnosis(run, summary.attempt) is not None or has_failure(run, summary.attempt)
    if read_submission(run) is None and not is_known:
        return None
    return diagnose_attempt(run, summary.attempt, word=word, otherwise=summary.reason)
