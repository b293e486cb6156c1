"""Start a run where its plan says, on this host or on several, and follow it from here."""

from __future__ import annotations

import time

from launcher.node.run import Say, silent
from launcher.node.signals import StopRequests
from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Observer, Outcome
from launcher.spec import ClusterKind, read_job
from launcher.targets import hosts, local
from launcher.targets.folder import write_run_folder
from launcher.targets.local import STOP_GRACE_S


def start_and_follow(
    launch: LaunchPlan,
    *,
    observer: Observer | None = None,
    say: Say = silent,
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
    say: Say = silent,
    stop_grace_s: float = STOP_GRACE_S,
    requests: StopRequests | None = None,
) -> Outcome:
    """Start the next attempt of a rendered, stopped or failed run, and follow it to its end.

    requests: of a caller that collects them itself, for several runs.
    Raises InputError for a run that is finished; SubmitError when its plan changed, when it is running already,
    or when nothing could be started.
    """
    kind = read_job(run.job).cluster.kind
    assert kind is not ClusterKind.SLURM, "a queued run is submitted, not started"
    start = hosts.start_attempt if kind is ClusterKind.HOSTS else local.start_attempt
    return start(run, observer=observer, say=say, stop_grace_s=stop_grace_s, requests=requests)
