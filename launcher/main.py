"""The Hydra entry: check the command line, let Hydra compose, call the workflow, map errors to exit codes.

Hydra composes data and nothing else: no `_target_` of ours is ever instantiated. A single job is composed through
Hydra's compose API (its own entry composes everything twice, to learn the mode first); a multirun and Hydra's options
(--help, --cfg, ...) go through its entry, and what Hydra itself then wants to write goes to a scratch folder that ends
with the process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from launcher.compose import plain
from launcher.errors import FitlaunchError, InputError, Interrupted, Problem
from launcher.host import Host, detect_host
from launcher.overrides import check_overrides
from launcher.paths import conf_dir
from launcher.report.console import make_console
from launcher.report.errors import show_error
from launcher.report.tracing import TraceScreen
from launcher.schema import JobConf
from launcher.spec import ClusterKind, Mode
from launcher.sweeps.loader import CellLoader
from launcher.workflow import Prepared, prepare, refuse_if_too_large, show_prepared

if TYPE_CHECKING:
    from launcher.sweeps.command import SweepCommand

CONFIG_NAME = "config"
VERSION_BASE = "1.3"


# Where Hydra's sweepers that search leave what they found, in hydra.sweep.dir.
SEARCH_RESULTS = "optimization_results.yaml"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class SweepTask:
    """What Hydra calls in a multirun: once for each cell, and then `finish_sweep` through the sweep launcher."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.wants_values = False

    def cell_loader(self, loader: ConfigLoader) -> ConfigLoader:
        """What composes the cells, asked by the sweep launcher."""
        return CellLoader(loader, conf_dir())

    @cached_property
    def host(self) -> Host:
        """This host, looked at once."""
        return detect_host()

    @cached_property
    def command(self) -> SweepCommand:
        """The sweep, whatever batches it comes in."""
        from launcher.sweeps.command import SweepCommand  # a plan is to be instant

        return SweepCommand(self.console)

    def __call__(self, config: DictConfig) -> Prepared:
        """Prepare a cell; nothing is started."""
        hydra_config = HydraConfig.get()
        overrides = list(hydra_config.overrides.task)
        self.wants_values = hydra_config.sweeper._target_ != BASIC_SWEEPER

        def compose(more: Sequence[str]) -> dict[str, Any]:
            if not more:
                return plain(config)
            return plain(hydra.compose(config_name=CONFIG_NAME, overrides=[*overrides, *more]))

        return prepare(overrides, compose, self.host)

    def finish_sweep(self, returns: Sequence[JobReturn]) -> None:
        """Carry out a batch whose cells are prepared; the value of each becomes its held-out loss.

        A sweeper that searches decides itself how many failures it bears.
        """
        from launcher.sweeps.command import merge_problems

        errors = [result._return_value for result in returns if result.status is JobStatus.FAILED]
        for error in errors:
            if not isinstance(error, InputError):
                raise error
        if errors:
            raise merge_problems(errors)
        cells = [result.return_value for result in returns]
        values, error = self.command.carry_out(cells, wants_values=self.wants_values)
        if error is not None and (not self.wants_values or isinstance(error, Interrupted)):
            raise error
        for result, value in zip(returns, values, strict=True):
            is_failed = isinstance(value, FitlaunchError)
            result.return_value = value if self.wants_values or not is_failed else None
            if is_failed and self.wants_values:
                result.status = JobStatus.FAILED


def launch_one(overrides: Sequence[str], console: Console) -> int:
    """Plan, render or run the one job that the overrides describe. Returns the exit code of what ran."""

    def compose(more: Sequence[str]) -> dict[str, Any]:
        return plain(hydra.compose(config_name=CONFIG_NAME, overrides=[*overrides, *more]))

    with hydra.initialize_config_dir(version_base=VERSION_BASE, config_dir=str(conf_dir())):
        prepared = prepare(overrides, compose, detect_host(), TraceScreen(console))
    show_prepared(prepared, console)
    refuse_if_too_large(prepared)
    if prepared.mode is Mode.PLAN:
        return 0
    from launcher.execution import queue, render_only, run  # a plan is to be instant

    if prepared.mode is Mode.RENDER:
        render_only(prepared, console)
    elif prepared.plan.spec.cluster.kind is ClusterKind.SLURM:
        queue(prepared, console)
    else:
        return run(prepared, console).exit_code  # the last screen has said why
    return 0


def call_hydra(argv: Sequence[str], overrides: Sequence[str], console: Console) -> None:
    """Hydra's own entry, with our folders. Its options stand before the overrides, in either order given."""
    options = [argument for argument in argv if argument not in overrides]
    original = sys.argv
    try:
        with tempfile.TemporaryDirectory(prefix="fitlaunch-") as scratch:
            folders = [f"hydra.run.dir={scratch}", f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=."]
            sys.argv = [original[0], *options, *folders, *overrides]
            task = SweepTask(console)
            hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)()
            if "command" in vars(task):
                task.command.keep_search(Path(scratch) / SEARCH_RESULTS)
    finally:
        sys.argv = original


def launch(argv: Sequence[str], console: Console) -> int:
    """Carry out a command line; returns the exit code. Raises FitlaunchError."""
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_intermixed_args(argv)
    problems = check_overrides(arguments.overrides, conf_dir(), multirun=arguments.multirun)
    if not arguments.multirun:
        problems += tuple(_sweep_options(arguments.overrides))
    if problems:
        raise InputError(problems)
    ConfigStore.instance().store(name="job_schema", node=JobConf)
    if not _has_options(arguments):
        return launch_one(arguments.overrides, console)
    call_hydra(argv, arguments.overrides, console)
    return 0


def _sweep_options(overrides: Sequence[str]) -> Iterator[Problem]:
    """An option without effect is an error."""
    for word in overrides:
        if word.startswith("sweep."):
            key, _, value = word.partition("=")
            yield Problem(field=key, value=value, rule="has no effect on one job", way_out="add -m for a sweep")


def _has_options(arguments: Namespace) -> bool:
    return any(value for name, value in vars(arguments).items() if name not in ("overrides", "run"))


def _composition_error(error: Exception) -> InputError:
    text = " ".join(str(error).split())
    return InputError([Problem(field="configuration", value=None, rule=f"cannot be composed: {text}")])


def main() -> int:
    """Run the command line; returns the exit code."""
    console = make_console()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own exit
    try:
        return launch(sys.argv[1:], console)
    except FitlaunchError as error:
        show_error(error, console)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        show_error(_composition_error(error), console)
        return InputError.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except BrokenPipeError:
        # Whoever read us has gone: nothing is wrong, but what is still buffered must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
