"""Before a run: whether the nodes that it would run on are fit to."""

from __future__ import annotations

import click

from launcher.cli.group import cli


@cli.command()
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--no-all-reduce", is_flag=True, help="Only ask the nodes; start no ranks.")
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=900,
    show_default=True,
    help="How many seconds the check-up's job may wait in a queue.",
)
def doctor(words: tuple[str, ...], no_all_reduce: bool, patience: int) -> int:
    """Check this host and every node that a job would run on, then reduce a tensor over all of them.

    Takes the words of launch.py. Nodes that something is wrong with are named, and ready to be excluded; then it exits
    with 4.

    \b
      fitlaunch doctor
      fitlaunch doctor cluster=slurm nodes=4 gpus=8 device=h100-80g
      fitlaunch doctor cluster=hosts cluster.hostfile=hostfile
    """
    from launcher.errors import SubmitError
    from launcher.host import detect_host
    from launcher.operate.doctor.command import check_up
    from launcher.operate.doctor.screen import show_checkup
    from launcher.paths import conf_dir
    from launcher.report.console import make_console

    checkup, folder = check_up(
        words,
        conf_dir(),
        detect_host(),
        lambda text: click.echo(f"fitlaunch: {text}", err=True),
        all_reduce=not no_all_reduce,
        patience_s=patience,
    )
    show_checkup(checkup, folder, make_console())
    return SubmitError.exit_code if checkup.findings else 0
