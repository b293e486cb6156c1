"""A Hydra launcher in two steps: run every cell's task in process, then hand all results to the task's `finish_sweep`.

For fitlaunch a cell's task only validates and plans, so that nothing starts before every cell was checked;
`finish_sweep` then shows them in one table, starts or submits those that fit and puts each cell's value in its
JobReturn. Its `cell_loader` composes cells where the task knows a quicker way than Hydra's own.
A task without these two is simply run, as Hydra's basic launcher would.
"""

# No `from __future__ import annotations` here: Hydra executes plugin modules without entering them in sys.modules,
# where dataclasses would look text annotations up.
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class FitlaunchLauncherConf:
    """Registered as hydra/launcher=fitlaunch."""

    _target_: str = "hydra_plugins.fitlaunch_launcher.launcher.FitlaunchLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="fitlaunch", node=FitlaunchLauncherConf, provider="fitlaunch")


class FitlaunchLauncher(Launcher):
    """Prepares all cells of a sweep, then finishes them together."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called once by Hydra, before any launch, and before the sweeper composes a cell."""
        cell_loader = getattr(task_function, "cell_loader", None)
        if cell_loader is not None:
            hydra_context.config_loader = cell_loader(hydra_context.config_loader)
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of cells; their results in the same order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        returns = [self._run(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        finish_sweep = getattr(self.task_function, "finish_sweep", None)
        if finish_sweep is not None:
            finish_sweep(returns)
        return returns

    def _run(self, overrides: Sequence[str], index: int) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(index)
            config.hydra.job.num = index
        result = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return result
