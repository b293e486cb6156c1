"""The launcher's process in the tests of sweeps: everything is as it is, but that cells run tests.sweep_job.

python -m tests.sweep_drive launch -m method=lora,full ...
python -m tests.sweep_drive fitlaunch sweep retry last
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import launcher.execution
from launcher.render.types import LaunchPlan

ROOT = Path(__file__).parents[1]
ORIGINAL = launcher.execution.render


def render(*arguments: Any, **options: Any) -> LaunchPlan:
    """As rendered, with the stub in the place of the program that starts the ranks."""
    launch = ORIGINAL(*arguments, **options)
    stub = {"PYTHONPATH": str(ROOT), "SWEEP_JOB": os.environ.get("SWEEP_JOB", "")}
    argv = (sys.executable, "-m", "tests.sweep_job", launch.run_dir)
    return dataclasses.replace(launch, argv=argv, env=launch.env | stub)


def main() -> int:
    launcher.execution.render = render
    if sys.argv[1] == "launch":
        from launcher.main import main as launch

        sys.argv = sys.argv[1:]
        return launch()
    from launcher.cli import run_cli

    return run_cli(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
