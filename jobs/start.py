"""What a rank is told by its environment, and the check that the frozen plan is still the one that was printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, ShardKind, content_hash


class StartRefused(RuntimeError):
    """This rank must not start: the plan changed, or its environment is not the one the plan was made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """The process that must stay alive while the ranks run. start_ticks guards against a reused pid."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of one rank. lease: what a launcher on another host renews. node: this rank's, where an agent started
    it. job_id: what the scheduler calls the job."""

    attempt: int
    plan_hash: str
    launcher: Launcher | None
    rank: int
    local_rank: int
    world_size: int
    lease: Path | None = None
    node: int | None = None
    job_id: str | None = None

    @property
    def is_first_rank(self) -> bool:
        """Whether this is rank 0, the only one that writes the run's records."""
        return self.rank == 0


def read_start(env: Mapping[str, str]) -> Start:
    """The start as the environment tells it; a missing variable is refused by name."""
    launcher, lease = env.get("FITLAUNCH_LAUNCHER"), env.get("FITLAUNCH_LEASE")
    return Start(
        attempt=_integer(env, "FITLAUNCH_ATTEMPT"),
        plan_hash=_required(env, "FITLAUNCH_PLAN_HASH"),
        launcher=_parse_launcher(launcher) if launcher else None,
        rank=_integer(env, "RANK"),
        local_rank=_integer(env, "LOCAL_RANK"),
        world_size=_integer(env, "WORLD_SIZE"),
        lease=Path(lease) if lease else None,
        node=_integer(env, "FITLAUNCH_NODE") if "FITLAUNCH_NODE" in env else None,
        job_id=env.get("FITLAUNCH_JOB_ID"),
    )


def verify_plan(run: RunFolder, expected_hash: str) -> None:
    """Refuse to start unless launch.json has the hash that was announced, and every file in it is on disk unchanged."""
    text = run.launch.read_text().removesuffix("\n")
    if content_hash(text) != expected_hash:
        raise StartRefused(f"{run.launch} is not the plan that was launched: its hash is not {expected_hash}")
    for name, planned in json.loads(text)["files"].items():
        path = run.root / name
        if not path.is_file():
            raise StartRefused(f"{path} belongs to the launch plan and is missing")
        if path.read_bytes() != planned.encode():
            raise StartRefused(f"{path} is not what the launch plan says; render the job again")


def verify_environment(spec: JobSpec, env: Mapping[str, str], *, num_cuda_devices: int) -> None:
    """Refuse an environment in which a library would silently do something else than planned.

    accelerate and DeepSpeed are steered by variables that a user's shell may carry; each of them has been seen to train
    the wrong thing with exit code 0.
    """
    wrong = [
        f"{name}={env.get(name, '')!r} ({reason})"
        for name, expected, reason in _expected_variables(spec)
        if env.get(name, "").lower() != expected
    ]
    if spec.device.kind == "cpu" and num_cuda_devices:
        wrong.append(f"{num_cuda_devices} CUDA devices are visible (a job for CPU ranks must see none)")
    if spec.device.kind == "cuda" and not num_cuda_devices:
        wrong.append("no CUDA device is visible (a job for GPUs never falls back to the CPU)")
    if wrong:
        raise StartRefused("the environment is not the planned one: " + "; ".join(wrong))


def _expected_variables(spec: JobSpec) -> list[tuple[str, str, str]]:
    fsdp = spec.shard.kind is ShardKind.FSDP
    rank0_loading = fsdp and spec.method.quant_type is None
    expected = [
        ("ACCELERATE_USE_FSDP", "true" if fsdp else "", "decides the wrapper"),
        ("ACCELERATE_USE_DEEPSPEED", "", "TrainingArguments sets it where it belongs"),
        ("ACCELERATE_MIXED_PRECISION", "", "would override the job's precision"),
        ("ACCELERATE_USE_CPU", "", "switches DeepSpeed off: every rank would train the same data"),
    ]
    if fsdp:
        expected.append(
            ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true" if rank0_loading else "false", "decides which ranks read weights")
        )
    if spec.shard.kind in (ShardKind.ZERO2, ShardKind.ZERO3) and spec.device.kind == "cpu":
        expected.append(("DS_ACCELERATOR", "cpu", "DeepSpeed must not guess its accelerator"))
    return expected


def _required(env: Mapping[str, str], name: str) -> str:
    if name not in env:
        raise StartRefused(f"{name} is not set: ranks are started by the launcher, never by hand")
    return env[name]


def _integer(env: Mapping[str, str], name: str) -> int:
    return int(_required(env, name))


def _parse_launcher(text: str) -> Launcher:
    pid, _, ticks = text.partition(":")
    return Launcher(pid=int(pid), start_ticks=int(ticks))
