"""See how runs stand: ls, status, logs, report."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.group import cli, resolve, takes_run, takes_runs_dir, wrong_run
from launcher.errors import InputError, Problem


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
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Go on until the run has ended, through the queue and further attempts.",
)
def logs(run: str, runs_dir: Path, rank: int | None, follow: bool) -> None:
    """Print the log of one rank of the newest attempt; with -f of the attempts to come as well."""
    from launcher.operate.follow import STATUS_PERIOD_S, LogFollower
    from launcher.operate.follow import follow as follow_logs
    from launcher.operate.queue import SlurmQueue
    from launcher.runs.attempts import last_attempt
    from launcher.runs.called import run_command
    from launcher.runs.registry import RunSummary, read_submission, summarise

    folder = resolve(run, runs_dir)
    attempt = last_attempt(folder)
    if attempt == 0 and read_submission(folder) is None:
        way_out = f"{run_command('resume', folder.root)} starts it"
        raise wrong_run(folder, "has no log: it was never started", way_out)
    follower = LogFollower(
        run=folder,
        rank=rank,
        write=lambda content: click.echo(content, nl=False),
        say=lambda text: click.echo(f"fitlaunch: {text}", err=True),
    )
    if follow:
        queue = SlurmQueue(max_age_s=STATUS_PERIOD_S)

        def stands() -> tuple[RunSummary, bool]:
            summary = summarise(folder, queue)
            return summary, bool(queue.silence)

        follow_logs(follower, stands)
        return
    if not follower.paths(attempt) and attempt:
        rule, way_out = f"has no log in attempt {attempt}", f"the logs are in {folder.attempt(attempt)}"
        raise InputError([Problem(field="--rank", value=follower.chosen(attempt), rule=rule, way_out=way_out)])
    if not attempt:
        follower.tell(summarise(folder, SlurmQueue()))
    follower.step()


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
