"""Start a run on several hosts that ssh reaches, follow it from here, and leave nothing behind on any of them.

Before anything is started every host is asked whether it may take part. Then:
- torchrun: an agent on each host, held by a pipe (launcher.targets.agents);
- deepspeed: DeepSpeed's own launcher here, which reaches the hosts by pdsh (launcher.targets.pdsh).
The ranks write their markers into the run folder, which all hosts share, so both are followed as a local run is. In the
end every host is asked once more to end whatever is left there, and to say how much that was.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import msgspec

from launcher.errors import InputError, Interrupted, Problem
from launcher.node.run import Say, silent
from launcher.node.signals import StopRequests, collect_stop_requests
from launcher.render.types import LaunchPlan
from launcher.runs.attempts import last_attempt, next_attempt, refuse_if_finished
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.records import Status
from launcher.runs.state import read_state
from launcher.runs.stopping import CANCEL, ask_to_stop
from launcher.spec import HostSlots, JobSpec, Program
from launcher.targets.agents import Agents
from launcher.targets.hosts_attempt import HostsAttempt
from launcher.targets.left import Left, end_on_hosts, write_ended
from launcher.targets.local import STOP_GRACE_S
from launcher.targets.pdsh import Pdsh, is_harmless
from launcher.targets.preflight import Ready, check_hosts

# The agents' pipe takes this much before anybody reads it.
MOST_ENVIRONMENT_BYTES = 32 * 1024
CANCEL_POLL_S = 0.5


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
    Raises InputError for a run that is finished, or an environment that cannot be passed on; SubmitError when its
    plan changed, when it is running already, when a host cannot take part, or when nothing could be started.
    """
    launch = read_launch_plan(run)
    spec = launch.job
    environment = passed_on(spec, os.environ)
    heard = collect_stop_requests() if requests is None else contextlib.nullcontext(requests)
    with heard as requests, hold_lock(run.lock, what=f"run {launch.run_id}"):
        refuse_if_finished(run)
        number = next_attempt(run)
        ready = check_hosts(run, spec, python=launch.argv[0], is_stopped=lambda: requests.first is not None)
        for warning in ready.warnings:
            say(warning)
        ranks = _ranks(run, launch, spec, number, ready, environment, stop_grace_s)
        if requests.first is not None:
            raise Interrupted("stopped before anything was started")
        attempt = HostsAttempt(
            run,
            launch,
            number,
            requests,
            ranks,
            hosts=hosts_of(spec),
            observer=observer,
            say=say,
            stop_grace_s=stop_grace_s,
        )
        return attempt.run_to_its_end()


def cancel_hosts(run: RunFolder, *, grace_s: float = STOP_GRACE_S) -> tuple[Left, ...]:
    """Ask the ranks to save and stop, wherever the launcher is; after the grace end them by force, on every host.

    Returns what was left on each host when it was asked in the end. Can be called from any host that sees the run
    folder and reaches the others by ssh.
    """
    launch = read_launch_plan(run)
    attempt = last_attempt(run)
    if attempt:
        ask_to_stop(run, attempt, CANCEL)
        end = time.monotonic() + (grace_s if run.started(attempt).exists() else 0.0)
        while _seems_running(run, attempt) and time.monotonic() < end:
            time.sleep(CANCEL_POLL_S)
    left = end_on_hosts(run, hosts_of(launch.job), python=launch.argv[0])
    for node, each in enumerate(left):
        if attempt and each.num_found is not None:
            write_ended(run, attempt, node, each.host)
    return left


def hosts_of(spec: JobSpec) -> tuple[HostSlots, ...]:
    """The hosts that the job takes; the first is its head."""
    assert spec.cluster.hosts is not None, "a job without a list of hosts"
    return spec.cluster.hosts.hosts


def passed_on(spec: JobSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of cluster.environment, from this process's own. Raises InputError that names what is wrong."""
    names = spec.cluster.environment
    found = {name: environ[name] for name in names if name in environ}
    problems = [
        Problem(field="cluster.environment", value=name, rule="is not set here", way_out="export it, or leave it out")
        for name in names
        if name not in environ
    ]
    if spec.program is Program.DEEPSPEED:
        rule = "has a value that DeepSpeed's launcher would hand to a shell"
        problems += [
            Problem(field="cluster.environment", value=name, rule=rule, way_out="use launcher=torchrun")
            for name, value in found.items()
            if not is_harmless(value)
        ]
    if len(msgspec.json.encode(found)) > MOST_ENVIRONMENT_BYTES:
        rule = f"has values of more than {MOST_ENVIRONMENT_BYTES} bytes in all"
        problems.append(
            Problem(field="cluster.environment", value=",".join(names), rule=rule, way_out="put them into a file")
        )
    if problems:
        raise InputError(problems)
    return found


def _ranks(
    run: RunFolder,
    launch: LaunchPlan,
    spec: JobSpec,
    number: int,
    ready: Ready,
    environment: Mapping[str, str],
    stop_grace_s: float,
) -> Agents | Pdsh:
    if spec.program is Program.DEEPSPEED:
        return Pdsh(
            run,
            launch,
            number,
            hosts_of(spec),
            ready,
            num_ranks_per_node=spec.gpus_per_node,
            environment=environment,
        )
    return Agents(
        run,
        number,
        hosts_of(spec),
        ready,
        python=launch.argv[0],
        stop_grace_s=stop_grace_s,
        environment=environment,
    )


def _seems_running(run: RunFolder, attempt: int) -> bool:
    state = read_state(run)
    return state is not None and state.attempt == attempt and state.status is Status.RUNNING
