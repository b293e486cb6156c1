"""Sweeps: how they stand, what failed once more, and no more of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.group import Command, SuggestingGroup, cli, takes_runs_dir

if TYPE_CHECKING:
    from launcher.runs.sweeps import SweepFolder


@cli.group(cls=SuggestingGroup)
def sweep() -> None:
    """See to sweeps, which launch.py -m starts.

    SWEEP is a sweep's id, the beginning of one, or 'last'. Its cells are runs, and can be seen to one by one as well.
    """


def takes_sweep(command: Command) -> Command:
    """The argument SWEEP and the option that says where runs are."""
    return takes_runs_dir(click.argument("sweep", metavar="SWEEP", default="last")(command))


@sweep.command("status")
@takes_sweep
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def status_command(sweep: str, runs_dir: Path, as_json: bool) -> None:
    """Say how every cell stands, with its loss. Looks for what was sent when its launcher was killed."""
    from launcher.report.console import make_console
    from launcher.report.sweeps import show_standings, standings_json
    from launcher.sweeps.standing import look

    folder = _resolve(sweep, runs_dir)
    record, cells, silence = look(folder)
    if as_json:
        click.echo(standings_json(record, cells))
        return
    show_standings(record, cells, make_console())
    if silence:
        click.echo(f"the scheduler does not answer: {silence}", err=True)


@sweep.command("retry")
@takes_sweep
@click.option("--stopped", is_flag=True, help="Also the cells that were stopped or cancelled.")
def retry_command(sweep: str, runs_dir: Path, stopped: bool) -> None:
    """Start the cells again that failed, or were never started: on Slurm as a new array of these alone."""
    from launcher.report.console import make_console
    from launcher.sweeps.command import error_of
    from launcher.sweeps.retry import retry

    results = retry(_resolve(sweep, runs_dir), make_console(), stopped_too=stopped)
    error = error_of(results)
    if error is not None:
        raise error


@sweep.command("cancel")
@takes_sweep
@click.option("--now", is_flag=True, help="End them at once; what they learnt since their last checkpoints is lost.")
def cancel_command(sweep: str, runs_dir: Path, now: bool) -> int:
    """Let all cells that run save and stop, and start no more. They stay cancelled until they are retried."""
    from launcher.errors import SubmitError
    from launcher.report.console import make_console
    from launcher.report.sweeps import show_standings
    from launcher.runs.sweeps import read_sweep
    from launcher.sweeps.cancel import cancel, cancelled_words
    from launcher.targets.local import STOP_GRACE_S

    folder = _resolve(sweep, runs_dir)
    cells = cancel(folder, lambda text: click.echo(text, err=True), grace_s=0.0 if now else STOP_GRACE_S)
    show_standings(read_sweep(folder), cells, make_console())
    left = cancelled_words(cells)
    if left:
        click.echo(left, err=True)
    return SubmitError.exit_code if left else 0


def _resolve(sweep: str, runs_dir: Path) -> SweepFolder:
    from launcher.runs.sweeps import resolve_sweep

    return resolve_sweep(runs_dir, sweep)
