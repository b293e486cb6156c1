"""Before a run: what fits, what this host measures, and launch.py by another name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from launcher import __version__
from launcher.cli.group import cli
from launcher.errors import InputError


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
