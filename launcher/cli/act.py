"""Act on runs: cancel, resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.group import cli, resolve, takes_run

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.runs.layout import RunFolder


@cli.command()
@takes_run
@click.option("--now", is_flag=True, help="End it at once; what it learnt since its last checkpoint is lost.")
def cancel(run: str, runs_dir: Path, now: bool) -> int:
    """Let a queued or running run save and stop; end it by force if it does not. Says what proves that it is gone."""
    from launcher.errors import SubmitError
    from launcher.operate.cancel import cancel as cancel_run
    from launcher.report.cancelled import show_cancelled
    from launcher.report.console import make_console
    from launcher.targets.local import STOP_GRACE_S

    done = cancel_run(
        resolve(run, runs_dir), lambda text: click.echo(text, err=True), grace_s=0.0 if now else STOP_GRACE_S
    )
    show_cancelled(done.summary, done.proof, done.unproven, make_console())
    return SubmitError.exit_code if done.unproven else 0


@cli.command()
@takes_run
def resume(run: str, runs_dir: Path) -> int:
    """Go on from the newest complete checkpoint: here, on the hosts, or in the queue again."""
    from launcher.operate.queue import SlurmQueue
    from launcher.operate.resume import check_resumable
    from launcher.planner.types import MemoryPlan
    from launcher.report.console import make_console
    from launcher.runs.records import read_record
    from launcher.runs.registry import read_submission, summarise
    from launcher.spec import ClusterKind, read_job
    from launcher.targets.space import check_disk, disk_need, free_bytes

    folder, console = resolve(run, runs_dir), make_console()
    click.echo(check_resumable(folder, summarise(folder, SlurmQueue()), read_submission(folder)), err=True)
    plan = read_record(folder.memory_plan, MemoryPlan)
    if plan is not None:
        # What it wrote before is counted again: a warning, for it may well be enough.
        warning = check_disk(disk_need(plan), folder.root, free_bytes(folder.root), refuse=False)
        if warning:
            console.print(warning, style="yellow")
    if read_job(folder.job).cluster.kind is ClusterKind.SLURM:
        return _queue_again(folder)
    return _go_on_here(folder, console)


def _go_on_here(folder: RunFolder, console: Console) -> int:
    from launcher.report.outcome import show_outcome, write_report
    from launcher.report.progress import ProgressView
    from launcher.spec import read_job
    from launcher.targets.start import start_attempt

    with ProgressView(console) as progress:
        outcome = start_attempt(folder, observer=progress, say=console.print)
    show_outcome(outcome, write_report(outcome), read_job(folder.job), console)
    return outcome.exit_code


def _queue_again(folder: RunFolder) -> int:
    from launcher.targets.slurm import submit_run

    submitted = submit_run(folder, os.environ)
    name, number = f"job {submitted.submission.job_id}", submitted.submission.number
    click.echo(
        f"queued as {name}, submission {number}" if submitted.is_new else f"it is queued already as {name}", err=True
    )
    return 0
