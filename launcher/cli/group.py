"""The group that all commands hang on, and what many of them take."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.errors import InputError, Problem
from launcher.paths import RUNS_DIR

if TYPE_CHECKING:
    from launcher.runs.layout import RunFolder

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


@click.group(cls=SuggestingGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """See to runs that were started with launch.py.

    RUN is a run's id, the beginning of one, a path to its folder, or 'last'.
    """


def takes_run(command: Command) -> Command:
    """The argument RUN and the option that says where runs are."""
    command = click.argument("run", metavar="RUN")(command)
    return takes_runs_dir(command)


def takes_runs_dir(command: Command) -> Command:
    """The folder that `runs_dir=` of the launcher names."""
    return click.option(
        "--runs-dir",
        type=click.Path(path_type=Path),
        default=Path(RUNS_DIR),
        show_default=True,
        help="Where the runs are.",
    )(command)


def resolve(run: str, runs_dir: Path) -> RunFolder:
    """The run that is meant. Raises InputError."""
    from launcher.runs.registry import resolve_run

    return resolve_run(runs_dir, run)


def wrong_run(folder: RunFolder, rule: str, way_out: str) -> InputError:
    """What is wrong with a run for a command."""
    return InputError([Problem(field="run", value=folder.root.name, rule=rule, way_out=way_out)])
