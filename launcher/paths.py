"""Where the project's own files are, whether it is installed or run from a checkout."""

from __future__ import annotations

from pathlib import Path

# Where launch.py writes runs and fitlaunch looks for them, below the working directory, unless told otherwise.
RUNS_DIR = "runs"


def conf_dir() -> Path:
    """The folder conf/, which is installed beside the package launcher/."""
    return Path(__file__).resolve().parent.parent / "conf"


def job_template() -> Path:
    """The template of the script that queues a job, installed beside the package launcher/ as well."""
    return Path(__file__).resolve().parent.parent / "slurm" / "job.sh.j2"
