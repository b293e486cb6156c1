"""Start a run on this host, follow it, and leave nothing behind; launcher.node.run says how an attempt ends.

The user asks for a stop by INT, TERM or HUP. That becomes a stop file, and no signal: one would reach the ranks at
different steps. Asked again, the launcher ends them by force.
"""

from __future__ import annotations

import contextlib
from functools import partial

from launcher.errors import Interrupted, SubmitError
from launcher.node.leftovers import LEFTOVER_WAIT_S
from launcher.node.run import Say, silent
from launcher.node.signals import StopRequests, collect_stop_requests
from launcher.node.waiting import wait_until
from launcher.render.types import LaunchPlan
from launcher.runs.attempts import next_attempt, refuse_if_finished
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.processes import processes_of_run, wait_until_gone
from launcher.targets.attempt import Attempt
from launcher.targets.ports import port_is_free

STOP_GRACE_S = 120.0
PORT_WAIT_S = 5.0
PORT_POLL_S = 0.2


def start_attempt(
    run: RunFolder,
    *,
    observer: Observer | None = None,
    say: Say = silent,
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
        number = next_attempt(run)
        refuse_if_finished(run)
        _refuse_if_still_running(launch)
        _refuse_if_port_taken(launch)
        if requests.first is not None:
            raise Interrupted("stopped before anything was started")
        attempt = Attempt(run, launch, number, requests, observer=observer, say=say, stop_grace_s=stop_grace_s)
        return attempt.run_to_its_end()


def _refuse_if_still_running(launch: LaunchPlan) -> None:
    left = wait_until_gone(lambda: processes_of_run(launch.run_dir), timeout_s=LEFTOVER_WAIT_S)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise SubmitError(f"processes of run {launch.run_id} are still running (pids {pids}): cancel it first")


def _refuse_if_port_taken(launch: LaunchPlan) -> None:
    """DeepSpeed's port is part of the frozen plan; another program may have taken it since."""
    option = "--master_port="
    for port in (int(word.removeprefix(option)) for word in launch.argv if word.startswith(option)):
        if not wait_until(partial(port_is_free, port), timeout_s=PORT_WAIT_S, poll_s=PORT_POLL_S):
            raise SubmitError(f"port {port} of run {launch.run_id} is taken by another program: launch anew")
