"""Runs for the cluster: real plans, scripts and agents, over stub ranks that train nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.devices import listed_devices
from launcher.planner.plan import make_plan
from launcher.render.render import render
from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.records import Submission, read_record
from launcher.targets.folder import write_run_folder
from slurm.bed import Bed
from slurm.bed.packages import SEARCH
from tests.composed import spec_of
from tests.slurm.harness import ROOT

SUBMIT_TIMEOUT_S = 20.0
# A program in the place of torchrun, for runs of which it only matters how often they start.
NO_RANKS = (sys.executable, "-m", "this", "{port}")


def slurm_launch(
    runs_dir: Path,
    *overrides: str,
    run_id: str = "run",
    nodes: int = 2,
    stub: Mapping[str, str] | None = None,
) -> LaunchPlan:
    """A launch plan for the cluster, one rank a node. stub: the environment of its stub ranks; without, it has none."""
    small = ("device=cpu", "gpus=1", "train.global_batch=32", "cluster.time=10", "cluster.lead_s=60")
    plan = make_plan(spec_of("cluster=slurm", f"nodes={nodes}", *small, *overrides), listed_devices(), propose=False)
    launch = render(plan.spec, plan, run_id=run_id, runs_dir=runs_dir, python=sys.executable, master_port=23_456)
    if stub is None:
        return dataclasses.replace(launch, argv=NO_RANKS)
    argv = tuple("tests.faults.stub_rank" if word == "jobs.train" else word for word in launch.argv)
    return dataclasses.replace(launch, argv=argv, env=launch.env | {"PYTHONPATH": str(ROOT)} | dict(stub))


def without_torchrun(launch: LaunchPlan) -> LaunchPlan:
    """The same with a stand-in that starts in a moment, where torchrun is not the point."""
    words = ("tests.faults.stub_torchrun" if word == "torch.distributed.run" else word for word in launch.argv)
    return dataclasses.replace(launch, argv=tuple(words))


def write(launch: LaunchPlan) -> RunFolder:
    """The run folder of a launch plan, as the launcher leaves it before it submits."""
    return write_run_folder(launch, now_s=time.time())


def submit_argv(run: RunFolder, timeout_s: float = SUBMIT_TIMEOUT_S) -> tuple[str, ...]:
    """The command that hands a run to Slurm."""
    return (sys.executable, "-m", "tests.slurm.drive", str(run.root), str(timeout_s))


def submit(
    bed: Bed, run: RunFolder, *, sbatch: Path | None = None, timeout_s: float = SUBMIT_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Hand a run to Slurm from the login node; sbatch: a folder with another program of that name."""
    path = SEARCH if sbatch is None else f"{sbatch}:{SEARCH}"
    return bed.login(submit_argv(run, timeout_s), cwd=ROOT, env={"PATH": path})


def submission(run: RunFolder) -> Submission:
    """What is written down of the newest submission."""
    record = read_record(run.submission, Submission)
    assert record is not None
    return record
