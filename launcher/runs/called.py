"""What a run or a sweep is called in a command that is typed here: fitlaunch looks in ./runs unless told otherwise."""

from __future__ import annotations

import shlex
from pathlib import Path

from launcher.paths import RUNS_DIR


def run_argument(run_dir: Path) -> str:
    """A run's id where that finds it, else its path."""
    run_dir = run_dir.absolute()
    return run_dir.name if _is_default(run_dir.parent) else str(run_dir)


def run_command(command: str, run_dir: Path) -> str:
    """'fitlaunch status ID', for a shell."""
    return f"fitlaunch {command} {shlex.quote(run_argument(run_dir))}"


def sweep_command(command: str, sweep_dir: Path) -> str:
    """'fitlaunch sweep status ID', for a shell; a sweep is known by its id alone."""
    sweep_dir = sweep_dir.absolute()
    runs_dir = sweep_dir.parent.parent
    where = "" if _is_default(runs_dir) else f" --runs-dir {shlex.quote(str(runs_dir))}"
    return f"fitlaunch sweep {command} {shlex.quote(sweep_dir.name)}{where}"


def _is_default(runs_dir: Path) -> bool:
    return runs_dir == Path(RUNS_DIR).absolute()
