"""The outcome of a run that has ended, put together from its folder; its launcher need not have lived to see it."""

from __future__ import annotations

from launcher.errors import InputError, Problem
from launcher.runs.cause import first_cause
from launcher.runs.layout import RunFolder
from launcher.runs.logs import log_tail
from launcher.runs.markers import read_markers
from launcher.runs.outcome import Outcome
from launcher.runs.records import Status
from launcher.runs.registry import summarise

EXIT_CODES = {Status.FINISHED: 0, Status.STOPPED: 130}
ENDED = (Status.FINISHED, Status.STOPPED, Status.FAILED)


def past_outcome(run: RunFolder) -> Outcome:
    """How the newest attempt ended. Raises InputError for a run that has not ended, or of which that is unknown."""
    summary = summarise(run)
    if summary.status not in ENDED:
        rule = f"has not ended: it is {summary.status}" + (f" ({summary.reason})" if summary.reason else "")
        way_out = f"fitlaunch status {summary.run_id} says how it stands"
        raise InputError([Problem(field="run", value=summary.run_id, rule=rule, way_out=way_out)])
    markers = read_markers(run, summary.attempt)
    failed = summary.status is Status.FAILED
    cause = first_cause(markers.failures, (), otherwise=summary.reason)
    return Outcome(
        run_dir=run.root,
        status=summary.status,
        exit_code=EXIT_CODES.get(summary.status, 5) if summary.exit_code is None else summary.exit_code,
        attempt=summary.attempt,
        finished=markers.finished,
        stopped=markers.stopped,
        failures=markers.failures,
        first_cause=summary.reason or (cause.text if failed else ""),
        log_tail=log_tail(run, summary.attempt, cause.rank) if failed else (),
        measurements=markers.measurements,
    )
