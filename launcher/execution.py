"""The way of a job once it is accepted: freeze it, write it, run it, report."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from launcher.errors import FitlaunchError, Interrupted, JobFailed
from launcher.host import detect_host
from launcher.render.asked import asked_of_slurm
from launcher.render.environment import HostFacts, read_host_facts
from launcher.render.render import render
from launcher.render.types import LaunchPlan
from launcher.report.launch_table import show_launch
from launcher.report.outcome import show_outcome, write_report
from launcher.report.progress import ProgressView
from launcher.report.queued import show_asked, show_queued
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Outcome
from launcher.runs.records import Submission
from launcher.runs.registry import new_run_id
from launcher.scheduler.client import SchedulerSilent
from launcher.scheduler.environment import job_environment
from launcher.spec import ClusterKind, Fit, JobSpec
from launcher.targets.credentials import keys_left_behind
from launcher.targets.folder import write_run_folder
from launcher.targets.ports import choose_port
from launcher.targets.shared import MOUNTS, doubtful_paths
from launcher.targets.site import check_site
from launcher.targets.slurm import submit_run
from launcher.targets.space import check_disk, check_host_ram, disk_need, free_bytes
from launcher.targets.start import start_and_follow
from launcher.workflow import Prepared


def frozen(prepared: Prepared, *, run_id: str | None = None, host: HostFacts | None = None) -> LaunchPlan:
    """The launch plan of a prepared job. run_id: a new one where it has none; host: what it is to see of this host."""
    spec = prepared.plan.spec
    run_id = run_id or new_run_id(spec, datetime.datetime.now(), secrets.token_hex(2))
    return render(
        spec,
        prepared.plan,
        run_id=run_id,
        runs_dir=prepared.runs_dir,
        python=sys.executable,
        master_port=choose_port(run_id),
        host=host or host_facts(spec),
    )


def host_facts(spec: JobSpec) -> HostFacts:
    """What of this host, and of the environment that the job will have, its launch plan depends on."""
    environ: Mapping[str, str] = os.environ
    if spec.cluster.kind is ClusterKind.SLURM:
        environ = job_environment(os.environ, spec.cluster.environment)
    elif spec.cluster.kind is ClusterKind.HOSTS:  # what is named goes over ssh; a login in the home folder is shared
        environ = {name: os.environ[name] for name in (*spec.cluster.environment, "HOME") if name in os.environ}
    return read_host_facts(environ)


def render_only(prepared: Prepared, console: Console) -> None:
    """mode=render: write the run folder and show the launch plan."""
    launch = frozen(prepared)
    write_run_folder(launch, now_s=time.time())
    show_launch(launch, console)
    if launch.submit:
        show_asked(prepared.plan.spec, asked_of_slurm(prepared.plan), console)


def run(prepared: Prepared, console: Console) -> Outcome:
    """mode=run: start the job, follow it to its end, and report. The outcome says how it ended; it is not raised.

    Raises DoesNotFit where the disk cannot hold what it will write.
    """
    refuse = prepared.fit is not Fit.WARN
    warning = check_disk(disk_need(prepared.plan), prepared.runs_dir, free_bytes(prepared.runs_dir), refuse=refuse)
    is_here = prepared.plan.spec.cluster.kind is ClusterKind.LOCAL
    ram = check_host_ram(prepared.plan, detect_host().ram_available_bytes) if is_here else ""
    for text in (warning, ram):
        if text:
            console.print(text, style="yellow")
    launch = frozen(prepared)
    with ProgressView(console) as progress:
        outcome = start_and_follow(launch, observer=progress, say=console.print)
    show_outcome(outcome, write_report(outcome), prepared.plan.spec, console)
    return outcome


def queue(prepared: Prepared, console: Console) -> Submission:
    """mode=run on a Slurm cluster: check, write the run folder, queue the job, and say how it is followed.

    Raises InputError or SubmitError where the cluster would not take it, DoesNotFit where the disk cannot hold what
    it will write. Nothing is written before the cluster was asked.
    """
    spec, refuse = prepared.plan.spec, prepared.fit is not Fit.WARN
    disk = check_disk(disk_need(prepared.plan), prepared.runs_dir, free_bytes(prepared.runs_dir), refuse=refuse)
    for text in (disk, *doubts(spec, prepared.runs_dir)):
        if text:
            console.print(text, style="yellow", soft_wrap=True)
    launch = frozen(prepared)
    run = RunFolder(Path(launch.run_dir))
    with nothing_is_queued():
        check_site(spec, launch.files[run.script.name], os.environ)
    submitted = submit_run(write_run_folder(launch, now_s=time.time()), os.environ)
    show_queued(submitted.submission, spec, asked_of_slurm(prepared.plan), launch.run_dir, console)
    return submitted.submission


def doubts(spec: JobSpec, runs_dir: Path) -> tuple[str, ...]:
    """What a job on a cluster may not find there: files, and keys."""
    paths = doubtful_paths(spec, runs_dir, MOUNTS.read_text())
    return (*paths, *keys_left_behind(spec, os.environ, job_environment(os.environ, spec.cluster.environment)))


@contextlib.contextmanager
def nothing_is_queued() -> Iterator[None]:
    """Say so where Slurm does not answer."""
    try:
        yield
    except SchedulerSilent as silent:
        way_out = "try again later, or take mode=render, which writes the script and asks nobody"
        raise SchedulerSilent(f"Slurm does not answer, and nothing was queued ({silent}): {way_out}") from None


def error_of(outcome: Outcome) -> FitlaunchError:
    """The error that carries an unfinished outcome's exit code."""
    return (Interrupted if outcome.exit_code == Interrupted.exit_code else JobFailed)(outcome.first_cause)
