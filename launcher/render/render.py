"""The way in: a planned job -> the launch plan that starts it. Pure; nothing is written or started here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.hostfile import hostfile_text
from launcher.planner.types import MemoryPlan
from launcher.precision import is_deepspeed
from launcher.render.asked import asked_of_slurm
from launcher.render.deepspeed import deepspeed_argv
from launcher.render.environment import HostFacts, environment
from launcher.render.hosts import refuse_unsayable_paths
from launcher.render.sbatch import Script, job_script, submit_argv
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
    Raises InputError for a path that cannot stand in a job script, or be said over ssh.
    """
    assert memory_plan.spec == spec, "the job to render is not the job that was planned"
    assert runs_dir.is_absolute(), f"runs_dir must be absolute: {runs_dir}"
    assert spec.nodes == 1 or spec.cluster.kind is not ClusterKind.LOCAL, "one host is one node"
    host = host or HostFacts()
    if spec.cluster.kind is not ClusterKind.LOCAL:
        host = dataclasses.replace(host, visible_devices=None)  # of this host, which takes no part
    run = RunFolder(runs_dir / run_id)
    run_dir = str(run.root)
    if spec.cluster.kind is ClusterKind.HOSTS:
        refuse_unsayable_paths(run_dir=run_dir, python=python)
    return LaunchPlan(
        run_id=run_id,
        run_dir=run_dir,
        argv=_argv(spec, run_dir=run_dir, python=python, master_port=master_port, host=host),
        env=environment(spec, run_dir=run_dir, host=host),
        files=_files(spec, memory_plan, run, python),
        submit=submit_argv(str(run.script)) if spec.cluster.slurm is not None else (),
    )


def _argv(spec: JobSpec, *, run_dir: str, python: str, master_port: int, host: HostFacts) -> tuple[str, ...]:
    if spec.program is Program.DEEPSPEED:
        hostfile = str(RunFolder(Path(run_dir)).hostfile)
        return deepspeed_argv(
            spec, run_dir=run_dir, python=python, master_port=master_port, host=host, hostfile=hostfile
        )
    return torchrun_argv(spec, run_dir=run_dir, python=python)


def _files(spec: JobSpec, memory_plan: MemoryPlan, run: RunFolder, python: str) -> dict[str, str]:
    """What the ranks read, and what starts them, by name in the run folder."""
    files = {run.job: to_json(spec), run.memory_plan: to_json(memory_plan)}
    if is_deepspeed(spec.shard.kind):
        files[run.deepspeed] = to_json(deepspeed_config(spec))
    if spec.cluster.hosts is not None:
        files[run.hostfile] = hostfile_text(spec.cluster.hosts.hosts, slots=spec.gpus_per_node)
    texts = {path: text + "\n" for path, text in files.items()}
    if spec.cluster.slurm is not None:
        asked = asked_of_slurm(memory_plan)
        script = Script(spec=spec, asked=asked, name=run.root.name, folder=str(run.root), python=python)
        texts[run.script] = job_script(script)
    return {str(path.relative_to(run.root)): text for path, text in texts.items()}
