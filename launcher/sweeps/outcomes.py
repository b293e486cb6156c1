"""The outcome of a cell that others followed: what its run says of itself now."""

from __future__ import annotations

from launcher.errors import Interrupted, JobFailed
from launcher.runs.layout import RunFolder
from launcher.runs.markers import Markers, read_markers
from launcher.runs.outcome import Outcome
from launcher.runs.records import Status
from launcher.runs.registry import RunSummary

NOTHING = Markers(started=None, finished=None, stopped=None, failures=(), measurements=())


def outcome_of(summary: RunSummary) -> Outcome:
    """How a run ended, as far as anybody can tell."""
    run = RunFolder(summary.run_dir)
    markers = read_markers(run, summary.attempt) if summary.attempt else NOTHING
    codes = {Status.FINISHED: 0, Status.STOPPED: JobFailed.exit_code, Status.CANCELLED: Interrupted.exit_code}
    return Outcome(
        run_dir=run.root,
        status=summary.status,
        exit_code=codes.get(summary.status, JobFailed.exit_code),
        attempt=summary.attempt,
        finished=markers.finished,
        stopped=markers.stopped,
        failures=markers.failures,
        first_cause=summary.reason,
        log_tail=(),
        measurements=markers.measurements,
    )
