"""The console script: everything that is done to a run after it was started.

What is for people goes to stderr, logs and JSON to stdout. Each command imports what it needs, so that help is instant.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher import __version__
from launcher.errors import FitlaunchError, InputError, Interrupted, Problem

if TYPE_CHECKING:
    from launcher.runs.layout import RunFolder

FOLLOW_POLL_S = 0.3
Command = Callable[..., Any]


class SuggestingGroup(click.Group):
    """A group that says which command may have been meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but an unknown command is met with the nearest one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            names = self.list_commands(ctx)
            near = difflib.get_close_matches(name, names, n=1)
            way_out = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(names)}"
            raise click.UsageError(f"{name} is not a command: {way_out}")
        return super().resolve_command(ctx, args)


def takes_run(command: Command) -> Command:
    """The argument RUN and the option that says where runs are."""
    command = click.argument("run", metavar="RUN")(command)
    return takes_runs_dir(command)


def takes_runs_dir(command: Command) -> Command:
    """The folder that `runs_dir=` of the launcher names."""
    return click.option(
        "--runs-dir",
        type=click.Path(path_type=Path),
        default=Path("runs"),
        show_default=True,
        help="Where the runs are.",
    )(command)


@click.group(cls=SuggestingGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """See to runs that were started with launch.py.

    RUN is a run's id, the beginning of one, a path to its folder, or 'last'.
    """


@cli.command("ls")
@takes_runs_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_command(runs_dir: Path, as_json: bool) -> None:
    """List the runs, how they stand, and how far their plans were off."""
    from launcher.report.console import make_console
    from launcher.report.runs_table import runs_json, show_runs
    from launcher.runs.registry import list_runs

    runs = list_runs(runs_dir)
    if as_json:
        click.echo(runs_json(runs))
        return
    show_runs(runs, runs_dir, make_console())


@cli.command()
@takes_run
def status(run: str, runs_dir: Path) -> None:
    """Say how a run stands."""
    from launcher.report.console import make_console
    from launcher.report.runs_table import show_status
    from launcher.runs.registry import summarise

    show_status(summarise(_resolve(run, runs_dir)), make_console())


@cli.command()
@takes_run
@click.option("--rank", type=click.IntRange(min=0), help="Whose log; the rank that failed first, or else 0.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until the run has ended.")
def logs(run: str, runs_dir: Path, rank: int | None, follow: bool) -> None:
    """Print the log of one rank of the newest attempt."""
    from launcher.runs.logs import agent_log, rank_logs
    from launcher.runs.markers import last_attempt, read_markers
    from launcher.runs.records import Status
    from launcher.runs.registry import summarise

    folder = _resolve(run, runs_dir)
    attempt = last_attempt(folder)
    if attempt == 0:
        raise _wrong_run(folder, "has no log: it was never started", f"fitlaunch resume {folder.root.name} starts it")
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
def cancel(run: str, runs_dir: Path) -> None:
    """Let a running run save and stop; end it by force if it does not."""
    from launcher.report.console import make_console
    from launcher.report.runs_table import show_status
    from launcher.targets.cancel import cancel as cancel_run

    folder = _resolve(run, runs_dir)
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
    from launcher.targets.local import start_attempt
    from launcher.targets.space import check_disk, disk_need, free_bytes

    folder = _resolve(run, runs_dir)
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


@cli.command()
@takes_run
def report(run: str, runs_dir: Path) -> None:
    """Show a run's last screen again."""
    from launcher.report.console import make_console
    from launcher.report.outcome import show_outcome, write_report
    from launcher.report.past import past_outcome
    from launcher.spec import read_job

    folder = _resolve(run, runs_dir)
    outcome = past_outcome(folder)
    show_outcome(outcome, write_report(outcome), read_job(folder.job), make_console())


@cli.command()
@takes_run
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to save; 'merged' in the run's folder otherwise."
)
def merge(run: str, runs_dir: Path, output: Path | None) -> int:
    """Write the adapter merged into its base, as one plain model."""
    where = () if output is None else ("--output", str(output))
    return _run_job("jobs.merge", _resolve(run, runs_dir), *where)


@cli.command()
@takes_run
@click.option("--prompt", multiple=True, help="What to ask; may be given several times. Held-out rows otherwise.")
@click.option("--merged", is_flag=True, help="Ask the merged model instead of base and adapter.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="The longest answer, in tokens.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def generate(
    run: str, runs_dir: Path, prompt: tuple[str, ...], merged: bool, max_new_tokens: int | None, as_json: bool
) -> int:
    """Answer a few prompts with base and result side by side."""
    options = [f"--prompt={text}" for text in prompt]
    options += ["--merged"] * merged + ["--json"] * as_json
    options += [] if max_new_tokens is None else [f"--max-new-tokens={max_new_tokens}"]
    return _run_job("jobs.generate", _resolve(run, runs_dir), *options)


@cli.command()
@takes_run
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def evaluate(run: str, runs_dir: Path, as_json: bool) -> int:
    """Measure the held-out loss of base and result again."""
    return _run_job("jobs.evaluate", _resolve(run, runs_dir), *["--json"] * as_json)


@cli.command()
@click.option("--cpu", is_flag=True, help="Measure CPU ranks instead: eight short jobs, some minutes.")
@click.option(
    "--shard",
    "shards",
    multiple=True,
    type=click.Choice(["ddp", "fsdp", "zero2", "zero3"]),
    help="With --cpu: only this sharding; may be given several times.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The folder to keep it in; FITLAUNCH_CALIBRATION otherwise."
)
def calibrate(cpu: bool, shards: tuple[str, ...], output: Path | None) -> None:
    """Measure on this host what no formula gives, for its plans."""
    from launcher.calibrating.command import calibrate as run_calibration
    from launcher.report.console import make_console
    from launcher.spec import ShardKind

    if shards and not cpu:
        raise click.UsageError("--shard has no effect without --cpu")
    run_calibration(cpu=cpu, shards=tuple(map(ShardKind, shards)), output=output, console=make_console())


@cli.command()
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def fit(context: click.Context, words: tuple[str, ...], as_json: bool) -> int:
    """Say what fits a card, before anything is started.

    Takes the words of launch.py. What is left open is answered for all it could be: without method= and shard= a table
    of both, without gpus= on the fewest GPUs, without device= for the smallest card. Exits with 3 when nothing fits.

    \b
      fitlaunch fit model=llama3-8b device=rtx4090
      fitlaunch fit model=qwen2.5-7b device=a100-80g gpus=8 train.sequence_length=8192
      fitlaunch fit model=llama3.1-70b method=qlora shard=fsdp gpus=4
    """
    from launcher.devices import listed_devices
    from launcher.errors import DoesNotFit
    from launcher.fitting import answer
    from launcher.host import detect_host
    from launcher.paths import conf_dir
    from launcher.planner.calibration import load_constants

    if not words:
        click.echo(context.get_help())
        return InputError.exit_code
    found = answer(words, conf_dir(), detect_host(), listed_devices(), load_constants(os.environ))
    if as_json:
        from launcher.spec import to_json

        click.echo(to_json(found))
    else:
        from launcher.report.console import make_console
        from launcher.report.fit_table import show_answer

        show_answer(found, make_console())
    return 0 if found.something_fits else DoesNotFit.exit_code


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(arguments: tuple[str, ...]) -> int:
    """Plan, render or run a job, as launch.py does."""
    from launcher.main import main as launch_main

    sys.argv = ["fitlaunch launch", *arguments]
    return launch_main()


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fitlaunch {__version__}")


def _resolve(run: str, runs_dir: Path) -> RunFolder:
    from launcher.runs.registry import resolve_run

    return resolve_run(runs_dir, run)


def _run_job(module: str, folder: RunFolder, *options: str) -> int:
    from launcher.targets.module import run_module

    return run_module(module, ("--run", str(folder.root), *options))


def _wrong_run(folder: RunFolder, rule: str, way_out: str) -> InputError:
    return InputError([Problem(field="run", value=folder.root.name, rule=rule, way_out=way_out)])


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


def main() -> None:
    """Run the command line, and exit as the errors say."""
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: list[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        code = cli.main(arguments, prog_name="fitlaunch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return InputError.exit_code
    except FitlaunchError as error:
        from launcher.report.console import make_console
        from launcher.report.errors import show_error

        show_error(error, make_console())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Interrupted.exit_code
    except BrokenPipeError:
        # Whoever read us has gone: nothing is wrong, but what is still buffered must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0
