"""Act on runs: cancel, resume."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.group import cli, resolve, takes_run


@cli.command()
@takes_run
def cancel(run: str, runs_dir: Path) -> None:
    """Let a running run save and stop; end it by force if it does not."""
    from launcher.report.console import make_console
    from launcher.report.runs_table import show_status
    from launcher.targets.cancel import cancel as cancel_run

    folder = resolve(run, runs_dir)
    click.echo(f"asking {folder.root.name} to save and stop", err=True)
    show_status(cancel_run(folder), make_console())


@cli.command()
@takes_run
def resume(run: str, runs_dir: Path) -> int:
    """Go on from the newest complete checkpoint."""
    from launcher.planner.types import MemoryPlan
    from launcher.report.console import make_console
    from launcher.report.outcome import show_outcome, write_report
    from launcher.report.progress import ProgressView
    from launcher.runs.records import read_record
    from launcher.spec import read_job
    from launcher.targets.space import check_disk, disk_need, free_bytes
    from launcher.targets.start import start_attempt

    folder = resolve(run, runs_dir)
    console = make_console()
    plan = read_record(folder.memory_plan, MemoryPlan)
    if plan is not None:
        # What it wrote before is counted again: a warning, for it may well be enough.
        warning = check_disk(disk_need(plan), folder.root, free_bytes(folder.root), refuse=False)
        if warning:
            console.print(warning, style="yellow")
    with ProgressView(console) as progress:
        outcome = start_attempt(folder, observer=progress, say=console.print)
    show_outcome(outcome, write_report(outcome), read_job(folder.job), console)
    return outcome.exit_code
