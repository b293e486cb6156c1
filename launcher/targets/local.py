"""Start a run on this host, follow it, and leave nothing behind.

How an attempt ends, whoever ends it:
- by itself: the ranks write a marker and exit, and so does the program that started them;
- the user asks (INT, TERM, HUP): a stop file; all ranks save at the same step and end. No signal is sent, for one
  would reach the ranks at different steps. If they have not ended after the grace, or the user asks again: by force;
- a rank fails: the others get FAILURE_GRACE_S to write what they know, then by force;
- this process is killed: every rank watches it and ends itself, and then so does the program that started them.
By force means TERM, then KILL, to every process that was started for this run, wherever it went.
"""

from __future__ import annotations

import contextlib
import time

from launcher.errors import InputError, Interrupted, Problem, SubmitError
from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.markers import last_attempt
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.processes import processes_of_run, wait_until_gone
from launcher.targets.attempt import Attempt, Say
from launcher.targets.folder import read_launch_plan, write_run_folder
from launcher.targets.ports import port_is_free
from launcher.targets.signals import collect_stop_requests

STOP_GRACE_S = 120.0
LEFTOVER_WAIT_S = 10.0
PORT_WAIT_S = 5.0


def _silent(_text: str) -> None:
    """Say nothing."""


def start_and_follow(
    launch: LaunchPlan,
    *,
    observer: Observer | None = None,
    say: Say = _silent,
    stop_grace_s: float = STOP_GRACE_S,
    requests: StopRequests | None = None,
) -> Outcome:
    """Write the run folder, start the job and follow it to its end.

    say takes a line for the user now and then. Raises SubmitError when nothing could be started.
    """
    run = write_run_folder(launch, now_s=time.time())
    return start_attempt(run, observer=observer, say=say, stop_grace_s=stop_grace_s, requests=requests)


def start_attempt(
    run: RunFolder,
    *,
    observer: Observer | None = None,
    say: Say = _silent,
    stop_grace_s: float = STOP_GRACE_S,
    requests: StopRequests | None = None,
) -> Outcome:
    """Start the next attempt of a rendered, stopped or failed run, and follow it to its end.

    requests: of a caller that collects them itself, for several runs at a time.
    Raises InputError for a run that is finished; SubmitError when its plan changed, when it is running already,
    or when nothing could be started.
    """
    launch = read_launch_plan(run)
    heard = collect_stop_requests() if requests is None else contextlib.nullcontext(requests)
    with heard as requests, hold_lock(run.lock, what=f"run {launch.run_id}"):
        number = last_attempt(run) + 1
        _refuse_if_finished(run, number - 1)
        _refuse_if_still_running(launch)
        _refuse_if_port_taken(launch)
        if requests.first is not None:
            raise Interrupted("stopped before anything was started")
        attempt = Attempt(run, launch, number, requests, observer=observer, say=say, stop_grace_s=stop_grace_s)
        return attempt.run_to_its_end()


def _refuse_if_finished(run: RunFolder, number: int) -> None:
    if number and run.finished(number).exists():
        problem = Problem(
            field="run", value=run.root.name, rule="is finished", way_out=f"its result is in {run.result}; launch anew"
        )
        raise InputError([problem])


def _refuse_if_still_running(launch: LaunchPlan) -> None:
    """Ranks of a launcher that was killed need a moment to notice."""
    left = wait_until_gone(lambda: processes_of_run(launch.run_dir), timeout_s=LEFTOVER_WAIT_S)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise SubmitError(f"processes of run {launch.run_id} are still running (pids {pids}): cancel it first")


def _refuse_if_port_taken(launch: LaunchPlan) -> None:
    """DeepSpeed's port is part of the frozen plan; another program may have taken it since."""
    option = "--master_port="
    for port in (int(word.removeprefix(option)) for word in launch.argv if word.startswith(option)):
        end = time.monotonic() + PORT_WAIT_S
        while not port_is_free(port):
            if time.monotonic() > end:
                raise SubmitError(f"port {port} of run {launch.run_id} is taken by another program: launch anew")
            time.sleep(0.2)
