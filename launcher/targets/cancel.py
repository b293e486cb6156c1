"""Stop a run from outside the launcher that follows it."""

from __future__ import annotations

import time

from launcher.errors import InputError, Problem
from launcher.node.run import TERM_GRACE_S
from launcher.runs.attempts import last_attempt
from launcher.runs.layout import RunFolder
from launcher.runs.processes import ProcessId, end_processes, processes_of_run, wait_until_gone
from launcher.runs.records import Status
from launcher.runs.registry import RunSummary, frozen_run_dir, summarise
from launcher.runs.stopping import CANCEL, ask_to_stop
from launcher.targets.local import STOP_GRACE_S

SETTLE_S = 10.0


def cancel(run: RunFolder, *, grace_s: float = STOP_GRACE_S) -> RunSummary:
    """Ask the ranks to save and stop; after the grace end them by force. Returns how the run stands then.

    Before their first step they have nothing to save, and are ended at once.
    Raises InputError where nothing of the run is running. Only processes that were started for this very run,
    by their own environment, are ever signalled.
    """
    run_dir = frozen_run_dir(run)

    def find() -> tuple[ProcessId, ...]:
        return processes_of_run(run_dir)

    before = summarise(run)
    if not find() and before.status is not Status.RUNNING:
        raise not_running(before)
    attempt = last_attempt(run)
    ask_to_stop(run, attempt, CANCEL)
    if wait_until_gone(find, timeout_s=grace_s if run.started(attempt).exists() else 0.0):
        end_processes(find, term_grace_s=TERM_GRACE_S)
    return settled(run)


def settled(run: RunFolder) -> RunSummary:
    """The launcher needs a moment to see that its ranks have ended and to write that down."""
    end = time.monotonic() + SETTLE_S
    summary = summarise(run)
    while summary.status is Status.RUNNING and time.monotonic() < end:
        time.sleep(0.1)
        summary = summarise(run)
    return summary


def not_running(summary: RunSummary) -> InputError:
    """Nothing is there to be cancelled."""
    rule = f"is not running: it is {summary.status}"
    return InputError([Problem(field="run", value=summary.run_id, rule=rule)])
