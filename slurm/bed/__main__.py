"""The commands of a bed: `python -m slurm.bed --help`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from slurm.bed.bed import Bed
from slurm.bed.commands import clean_environment
from slurm.bed.errors import BedError
from slurm.bed.settings import HEAD, BedSettings

FOLDER = Path(__file__).parents[2] / ".bed"


class Commands(click.Group):
    """A group whose commands end with a sentence and an exit code where a bed cannot do what was asked."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BedError as error:
            click.echo(error, err=True)
            ctx.exit(error.exit_code)


@click.group(cls=Commands, context_settings={"max_content_width": 120})
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    envvar="FITLAUNCH_BED",
    default=FOLDER,
    help="Where the bed keeps its files; one bed a folder. Also $FITLAUNCH_BED.  [default: .bed in the checkout]",
)
@click.pass_context
def main(context: click.Context, folder: Path) -> None:
    """A Slurm cluster of several nodes on this machine, for trying things. Needs root."""
    context.obj = folder


@main.command()
@click.argument("num_nodes", type=click.IntRange(1, 64), default=3)
@click.option("--cpus", default=16, show_default=True, help="CPUs per node, as Slurm believes.")
@click.option("--memory-mib", default=64_000, show_default=True, help="Memory per node, as Slurm believes.")
@click.option("--gpus", default=8, show_default=True, help="GPUs per node; all of them fake.")
@click.option("--loopback-hostname", is_flag=True, help="Each node's own name is 127.0.1.1, as on Debian.")
@click.option("--slurm-conf", multiple=True, metavar="LINE", help="A line for slurm.conf, as MaxArraySize=10.")
@click.pass_obj
def up(
    folder: Path,
    num_nodes: int,
    cpus: int,
    memory_mib: int,
    gpus: int,
    loopback_hostname: bool,
    slurm_conf: tuple[str, ...],
) -> None:
    """Start a bed of NUM_NODES nodes."""
    settings = BedSettings(
        num_nodes=num_nodes,
        num_cpus_per_node=cpus,
        memory_mib_per_node=memory_mib,
        num_gpus_per_node=gpus,
        loopback_hostname=loopback_hostname,
        slurm_conf=slurm_conf,
    )
    began_s = time.monotonic()
    Bed(folder, settings).up()
    click.echo(f"{num_nodes} nodes are up after {time.monotonic() - began_s:.1f} s; logs in {folder}/log", err=True)


@main.command()
@click.option("--keep-files", is_flag=True, help="Leave logs and configuration.")
@click.pass_obj
def down(folder: Path, keep_files: bool) -> None:
    """End the bed and everything in it."""
    Bed.at(folder, must_be_up=False).down(keep_files=keep_files)


@main.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[@NODE] COMMAND...")
@click.pass_obj
def execute(folder: Path, words: tuple[str, ...]) -> None:
    """Run a command on the login node or on a node, in the folder that you are in."""
    host, command = (words[0][1:], words[1:]) if words[0].startswith("@") else (HEAD, words)
    argv = Bed.at(folder).command(host, command or ("bash",))
    os.execvpe(argv[0], argv, clean_environment())  # noqa: S606


NODE_FAULTS = {
    "power-off": (Bed.power_off, "Every process of NODE is gone at once."),
    "boot": (Bed.boot, "Give NODE power."),
    "reboot": (Bed.reboot, "Power off, then on."),
    "cut": (Bed.cut, "Pull the cable of NODE: its processes go on, and nobody reaches them."),
    "mend": (Bed.mend, "Plug the cable of NODE in again."),
    "kill-slurmd": (Bed.kill_slurmd, "End slurmd alone, by force: the steps on NODE go on."),
    "start-slurmd": (Bed.start_slurmd, "Start slurmd on NODE."),
}
CONTROLLER_FAULTS = {
    "hang-controller": (Bed.hang_controller, "The controller takes connections and answers none."),
    "wake-controller": (Bed.wake_controller, "End the hang of the controller."),
    "stop-controller": (Bed.stop_controller, "End the controller; it saves its state first."),
    "start-controller": (Bed.start_controller, "Start the controller with the state that it has."),
}


def _add_faults() -> None:
    for name, (of_node, text) in NODE_FAULTS.items():

        @click.argument("node")
        @click.pass_obj
        def break_node(folder: Path, node: str, do: Any = of_node) -> None:
            do(Bed.at(folder), node)

        main.command(name=name, help=text)(break_node)
    for name, (of_controller, text) in CONTROLLER_FAULTS.items():

        @click.pass_obj
        def break_controller(folder: Path, do: Any = of_controller) -> None:
            do(Bed.at(folder))

        main.command(name=name, help=text)(break_controller)


_add_faults()


@main.command(name="small-disk")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("size_bytes", type=click.IntRange(min=4096))
@click.pass_obj
def small_disk(folder: Path, path: Path, size_bytes: int) -> None:
    """Mount a disk of SIZE_BYTES over the folder PATH, on every host of the bed."""
    Bed.at(folder).small_disk(path.absolute(), size_bytes)


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m slurm.bed"))
