"""See how runs stand: ls, status, logs, report."""

from __future__ import annotations

import time
from pathlib import Path

import click

from launcher.cli.group import cli, resolve, takes_run, takes_runs_dir, wrong_run
from launcher.errors import InputError, Problem

FOLLOW_POLL_S = 0.3


@cli.command("ls")
@takes_runs_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_command(runs_dir: Path, as_json: bool) -> None:
    """List the runs, how they stand, and how far their plans were off."""
    from launcher.operate.queue import SlurmQueue
    from launcher.report.console import make_console
    from launcher.report.runs_table import runs_json, show_runs, show_silence
    from launcher.runs.registry import list_runs

    queue = SlurmQueue()
    runs = list_runs(runs_dir, queue)
    if as_json:
        click.echo(runs_json(runs))
        show_silence(queue.silence, make_console())
        return
    show_runs(runs, runs_dir, make_console(), silence=queue.silence)


@cli.command()
@takes_run
def status(run: str, runs_dir: Path) -> None:
    """Say how a run stands, and of one that failed why."""
    from launcher.operate.queue import SlurmQueue
    from launcher.report.console import make_console
    from launcher.report.past import failure_of
    from launcher.report.runs_table import show_silence, show_status
    from launcher.runs.registry import summarise

    folder, queue, console = resolve(run, runs_dir), SlurmQueue(), make_console()
    summary = summarise(folder, queue)
    show_status(summary, console, failure_of(folder, summary, queue.word(folder)))
    show_silence(queue.silence, console)


@cli.command()
@takes_run
@click.option("--rank", type=click.IntRange(min=0), help="Whose log; the rank that failed first, or else 0.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until the run has ended.")
def logs(run: str, runs_dir: Path, rank: int | None, follow: bool) -> None:
    """Print the log of one rank of the newest attempt."""
    from launcher.runs.attempts import last_attempt
    from launcher.runs.logs import agent_log, rank_logs
    from launcher.runs.markers import read_markers
    from launcher.runs.records import Status
    from launcher.runs.registry import summarise

    folder = resolve(run, runs_dir)
    attempt = last_attempt(folder)
    if attempt == 0:
        raise wrong_run(folder, "has no log: it was never started", f"fitlaunch resume {folder.root.name} starts it")
    failures = read_markers(folder, attempt).failures
    chosen = rank if rank is not None else failures[0].rank if failures else 0

    def paths() -> tuple[Path, ...]:
        found = tuple(reversed(rank_logs(folder, attempt, chosen)))
        return found or ((agent_log(folder, attempt),) if rank is None else ())

    if not paths() and not follow:
        rule, way_out = f"has no log in attempt {attempt}", f"the logs are in {folder.logs(attempt)}"
        raise InputError([Problem(field="--rank", value=chosen, rule=rule, way_out=way_out)])
    printed: dict[Path, int] = {}
    while True:
        # Asked before printing, so that what was written up to the end is printed after it.
        running = follow and summarise(folder).status is Status.RUNNING
        for path in paths():
            printed[path] = _print_from(path, printed.get(path, 0))
        if not running:
            return
        time.sleep(FOLLOW_POLL_S)


@cli.command()
@takes_run
def report(run: str, runs_dir: Path) -> None:
    """Show a run's last screen again."""
    from launcher.operate.queue import SlurmQueue
    from launcher.report.console import make_console
    from launcher.report.outcome import show_outcome, write_report
    from launcher.report.past import past_outcome
    from launcher.runs.registry import summarise
    from launcher.spec import read_job

    folder, queue = resolve(run, runs_dir), SlurmQueue()
    outcome = past_outcome(folder, summarise(folder, queue), queue.word(folder))
    show_outcome(outcome, write_report(outcome), read_job(folder.job), make_console())


def _print_from(path: Path, offset: int) -> int:
    """Copy what a log holds beyond `offset` to stdout; returns how far it was read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return offset
    click.echo(content, nl=False)
    return offset + len(content)
