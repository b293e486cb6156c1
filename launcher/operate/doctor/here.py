"""Whether the host that launches is fit to: the programs that it needs, who answers, and its own disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.operate.doctor.types import Finding
from launcher.scheduler.client import Ask, SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.details import partitions
from launcher.spec import ClusterKind, JobSpec, Program
from launcher.targets.site import partition_problems
from launcher.targets.space import free_bytes
from launcher.units import format_bytes

SLURM_PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
MUNGE_TIMEOUT_S = 10.0


def check_here(spec: JobSpec, runs_dir: Path, disk_bytes: int, slurm: Ask = ask) -> Iterator[Finding]:
    """Everything that is wrong on this host."""
    yield from _programs(spec)
    yield from _folder(runs_dir, disk_bytes)
    if spec.cluster.kind is ClusterKind.SLURM and shutil.which("scontrol"):
        yield from _munge()
        yield from _slurm(spec, slurm)


def _programs(spec: JobSpec) -> Iterator[Finding]:
    needed: tuple[str, ...] = ()
    if spec.cluster.kind is ClusterKind.SLURM:
        needed = SLURM_PROGRAMS
    elif spec.cluster.kind is ClusterKind.HOSTS:
        needed = ("ssh", "pdsh") if spec.program is Program.DEEPSPEED else ("ssh",)
    for program in needed:
        if shutil.which(program) is None:
            what = "is this a login node?" if program in SLURM_PROGRAMS else f"install {program}"
            yield Finding(node=None, rule=f"{program} is not on PATH here", way_out=what)


def _folder(runs_dir: Path, disk_bytes: int) -> Iterator[Finding]:
    nearest = next(folder for folder in (runs_dir, *runs_dir.parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        yield Finding(node=None, rule=f"{nearest} cannot be written", way_out="use runs_dir=DIR")
    free = free_bytes(runs_dir)
    if free < disk_bytes:
        rule = f"{runs_dir} has {format_bytes(free)} free, and the run may write {format_bytes(disk_bytes)}"
        yield Finding(node=None, rule=rule, way_out="make room, or use runs_dir=DIR")


def _munge(run: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run) -> Iterator[Finding]:
    """Where munge is what Slurm trusts, its daemon has to be up: without it nothing is answered."""
    if shutil.which("munge") is None:
        return
    try:
        done = run(("munge", "-n"), capture_output=True, timeout=MUNGE_TIMEOUT_S, start_new_session=True, check=False)
        said = done.stderr.decode(errors="replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    else:
        if done.returncode == 0:
            return
    yield Finding(node=None, rule=f"munge does not work here: {said}", way_out="its daemon munged must be up")


def _slurm(spec: JobSpec, slurm: Ask) -> Iterator[Finding]:
    assert spec.cluster.slurm is not None
    try:
        told = partitions(slurm)
    except (SchedulerSilent, SchedulerRefused) as error:
        yield Finding(node=None, rule=f"Slurm does not answer: {error}", way_out="see scontrol ping, and wait")
        return
    for problem in partition_problems(spec, spec.cluster.slurm, told):
        yield Finding(node=None, rule=str(dataclasses.replace(problem, way_out="")), way_out=problem.way_out)
