"""The way in: a planned job -> the launch plan that starts it. Pure; nothing is written or started here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.errors import InputError, Problem
from launcher.hostfile import hostfile_text
from launcher.planner.types import MemoryPlan
from launcher.precision import is_deepspeed
from launcher.render.deepspeed import deepspeed_argv
from launcher.render.environment import HostFacts, environment
from launcher.render.torchrun import torchrun_argv
from launcher.render.types import LaunchPlan
from launcher.render.zero_config import deepspeed_config
from launcher.runs.layout import RunFolder
from launcher.spec import ClusterKind, JobSpec, Program, to_json


def render(
    spec: JobSpec,
    memory_plan: MemoryPlan,
    *,
    run_id: str,
    runs_dir: Path,
    python: str,
    master_port: int,
    host: HostFacts | None = None,
) -> LaunchPlan:
    """Render the job that was planned, its micro batch chosen.

    runs_dir: absolute. python: the interpreter of the ranks. master_port: where DeepSpeed's ranks meet
    (torchrun takes a free port of its own). host: what of this host the environment depends on.
    Raises InputError for what this version cannot start.
    """
    assert memory_plan.spec == spec, "the job to render is not the job that was planned"
    assert runs_dir.is_absolute(), f"runs_dir must be absolute: {runs_dir}"
    if spec.cluster.kind is ClusterKind.SLURM or (spec.cluster.kind is ClusterKind.LOCAL and spec.nodes != 1):
        raise InputError([_not_here(spec)])
    host = host or HostFacts()
    if spec.cluster.kind is not ClusterKind.LOCAL:
        host = dataclasses.replace(host, visible_devices=None)  # of this host, which takes no part
    run = RunFolder(runs_dir / run_id)
    run_dir = str(run.root)
    return LaunchPlan(
        run_id=run_id,
        run_dir=run_dir,
        argv=_argv(spec, run_dir=run_dir, python=python, master_port=master_port, host=host),
        env=environment(spec, run_dir=run_dir, host=host),
        files=_files(spec, memory_plan, run),
    )


def _not_here(spec: JobSpec) -> Problem:
    return Problem(
        field="cluster",
        value=f"{spec.cluster.kind} nodes={spec.nodes}",
        rule="cannot be started from here yet, only planned",
        way_out="use mode=plan, or cluster=local nodes=1",
    )


def _argv(spec: JobSpec, *, run_dir: str, python: str, master_port: int, host: HostFacts) -> tuple[str, ...]:
    if spec.program is Program.DEEPSPEED:
        hostfile = str(RunFolder(Path(run_dir)).hostfile)
        return deepspeed_argv(
            spec, run_dir=run_dir, python=python, master_port=master_port, host=host, hostfile=hostfile
        )
    return torchrun_argv(spec, run_dir=run_dir, python=python)


def _files(spec: JobSpec, memory_plan: MemoryPlan, run: RunFolder) -> dict[str, str]:
    """What the ranks read, by name in the run folder."""
    files = {run.job: to_json(spec), run.memory_plan: to_json(memory_plan)}
    if is_deepspeed(spec.shard.kind):
        files[run.deepspeed] = to_json(deepspeed_config(spec))
    if spec.cluster.hosts is not None:
        files[run.hostfile] = hostfile_text(spec.cluster.hosts.hosts, slots=spec.gpus_per_node)
    return {str(path.relative_to(run.root)): text + "\n" for path, text in files.items()}
