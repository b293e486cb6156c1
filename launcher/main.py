"""The Hydra entry: check the command line, let Hydra compose, call the workflow, map errors to exit codes.

Hydra composes data and nothing else: no `_target_` of ours is ever instantiated, and what Hydra itself wants to write
(multirun.yaml) goes to a scratch folder that ends with the process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
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
from launcher.schema import JobConf
from launcher.spec import Mode
from launcher.sweep import error_of_sweep, merge_problems, run_sweep
from launcher.workflow import (
    Prepared,
    prepare,
    raise_unless_finished,
    refuse_if_too_large,
    render_only,
    run,
    show_prepared,
)


class Task:
    """What Hydra calls: once for a run; for a multirun once a cell, and then `finish_sweep` by the sweep launcher.

    error: what a run ended with. It is kept, not raised: Hydra would put lines of its own before it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.error: FitlaunchError | None = None

    @cached_property
    def host(self) -> Host:
        """This host, looked at once."""
        return detect_host()

    def __call__(self, config: DictConfig) -> Prepared | None:
        """Prepare a cell; outside a multirun also carry it out."""
        overrides = list(HydraConfig.get().overrides.task)

        def compose(more: Sequence[str]) -> dict[str, Any]:
            if not more:
                return plain(config)
            return plain(hydra.compose(config_name="config", overrides=[*overrides, *more]))

        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return prepare(overrides, compose, self.host)
        try:
            self._carry_out(prepare(overrides, compose, self.host))
        except FitlaunchError as error:
            self.error = error
        return None

    def _carry_out(self, prepared: Prepared) -> None:
        show_prepared(prepared, self.console)
        refuse_if_too_large(prepared)
        if prepared.mode is Mode.RENDER:
            render_only(prepared, self.console)
        elif prepared.mode is Mode.RUN:
            raise_unless_finished(run(prepared, self.console))

    def finish_sweep(self, returns: Sequence[JobReturn]) -> None:
        """Carry out a sweep whose cells are prepared; the value of each becomes its held-out loss."""
        errors = [r._return_value for r in returns if r.status is JobStatus.FAILED]
        for error in errors:
            if not isinstance(error, InputError):
                raise error
        if errors:
            raise merge_problems(errors)
        cells = [r.return_value for r in returns]
        outcomes = run_sweep(cells, self.console)
        for result, outcome in zip(returns, outcomes, strict=True):
            finished = outcome.finished if outcome is not None else None
            result.return_value = finished.eval_loss_after if finished is not None else None
        error = error_of_sweep(cells, outcomes)
        if error is not None:
            raise error


def _checked_arguments(argv: Sequence[str], scratch: str) -> list[str]:
    """Hydra's arguments, options before overrides, once the overrides are known to be good."""
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_intermixed_args(argv)
    problems = check_overrides(arguments.overrides, conf_dir(), multirun=arguments.multirun)
    if problems:
        raise InputError(problems)
    options = [argument for argument in argv if argument not in arguments.overrides]
    folders = [f"hydra.run.dir={scratch}", f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=."]
    return [*options, *folders, *arguments.overrides]


def _composition_error(error: Exception) -> InputError:
    text = " ".join(str(error).split())
    return InputError([Problem(field="configuration", value=None, rule=f"cannot be composed: {text}")])


def main() -> int:
    """Run the command line; returns the exit code."""
    console = make_console()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own exit
    ConfigStore.instance().store(name="job_schema", node=JobConf)
    arguments = sys.argv
    try:
        with tempfile.TemporaryDirectory(prefix="fitlaunch-") as scratch:
            sys.argv = [arguments[0], *_checked_arguments(arguments[1:], scratch)]
            task = Task(console)
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
            if task.error is not None:
                raise task.error
    except FitlaunchError as error:
        show_error(error, console)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        show_error(_composition_error(error), console)
        return InputError.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    finally:
        sys.argv = arguments
    return 0
