"""Real ranks for the tests: a JobSpec over a tiny model, a run folder as the launcher writes it, and torchrun."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from launcher.precision import is_deepspeed
from launcher.render.environment import DROPPED_PREFIXES, HostFacts
from launcher.render.environment import environment as planned_environment
from launcher.render.types import LaunchPlan
from launcher.render.zero_config import deepspeed_config
from launcher.runs.layout import RunFolder
from launcher.runs.records import Event, Started, read_record
from launcher.spec import (
    ActivationCheckpointing,
    JobSpec,
    MethodKind,
    Offload,
    Precision,
    ShardKind,
    ShardSpec,
    to_json,
)
from tests.forked_ranks import ForkedRanks
from tests.specs import device_spec, job_spec, method_spec

TIMEOUT_S = 180.0


def make_spec(
    model_dir: Path,
    data_file: Path,
    *,
    method: MethodKind = MethodKind.LORA,
    shard: ShardKind = ShardKind.DDP,
    precision: Precision = Precision.FP32,
    world_size: int = 2,
    **train: Any,
) -> JobSpec:
    """A small job on CPU ranks: 6 steps of 8 sequences, two micro batches of 2 on each of two ranks."""
    return job_spec(
        model={
            "license": "none",
            "path": str(model_dir),
            "config": json.loads((model_dir / "config.json").read_text()),
        },
        method=method_spec(method, shard=shard, precision=precision, rank=4),
        shard=_shard(shard),
        data={"name": "tiny", "path": str(data_file), "eval_fraction": 0.15},
        train=TRAIN | {"precision": precision} | train,
        device=device_spec("cpu", "cpu"),
        gpus=world_size,
    )


TRAIN = {
    "max_steps": 6,
    "global_batch": 8,
    "micro_batch": 2,
    "sequence_length": 96,
    "learning_rate": 5e-3,
    "weight_decay": 0.01,
    "warmup_ratio": 0.2,
    "activation_checkpointing": ActivationCheckpointing.NONE,
    "seed": 7,
}


def _shard(kind: ShardKind) -> ShardSpec:
    if kind is ShardKind.DDP:
        return ShardSpec(kind=kind, offload=Offload.NONE, bucket_cap_mb=25, gradient_as_bucket_view=True)
    if kind is ShardKind.FSDP:
        return ShardSpec(kind=kind, offload=Offload.NONE, reshard_after_forward=True)
    engine = ShardSpec(
        kind=kind,
        offload=Offload.NONE,
        reduce_bucket_size=500_000,
        allgather_bucket_size=500_000,
        overlap_comm=False,
    )
    if kind is ShardKind.ZERO2:
        return engine
    return dataclasses.replace(
        engine,
        prefetch_bucket_size=50_000,
        param_persistence_threshold=0,
        max_live_parameters=1_000_000_000,
        max_reuse_distance=1_000_000_000,
        sub_group_size=1_000_000_000,
    )


def write_run(root: Path, spec: JobSpec) -> RunFolder:
    """Write a run folder as the launcher does, its plan frozen."""
    run = RunFolder(root)
    files = {"job.json": to_json(spec) + "\n"}
    if is_deepspeed(spec.shard.kind):
        files["deepspeed.json"] = json.dumps(deepspeed_config(spec), indent=2) + "\n"
    plan = LaunchPlan(run_id=root.name, run_dir=str(root), argv=(), env={}, files=files)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run.launch.write_text(to_json(plan) + "\n")
    run.launch_hash.write_text(plan.hash + "\n")
    return run


def environment(run: RunFolder, spec: JobSpec, attempt: int, launcher: tuple[int, int] | None = None) -> dict[str, str]:
    """What the launcher gives its ranks."""
    pid, start_ticks = launcher or (os.getpid(), _start_ticks())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED_PREFIXES)}
    planned = planned_environment(spec, run_dir=str(run.root), host=HostFacts(num_cpus=spec.world_size))
    return (
        kept
        | planned
        | {
            "FITLAUNCH_ATTEMPT": str(attempt),
            "FITLAUNCH_PLAN_HASH": run.launch_hash.read_text().strip(),
            "FITLAUNCH_LAUNCHER": f"{pid}:{start_ticks}",
        }
    )


def start_ranks(
    run: RunFolder, spec: JobSpec, attempt: int = 1, launcher: tuple[int, int] | None = None
) -> subprocess.Popen[bytes]:
    """Start the ranks by torchrun, in a session of their own; their output goes to the attempt's logs.

    launcher: pid and start ticks of what they take for their launcher; by default this process.
    """
    run.logs(attempt).mkdir(parents=True, exist_ok=True)
    argv = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"),
        *(f"--nproc-per-node={spec.world_size}", "--max-restarts=0"),
        *("-m", "jobs.train", str(run.root)),
    ]
    with (run.logs(attempt) / "ranks.log").open("wb") as log:
        return subprocess.Popen(
            argv, env=environment(run, spec, attempt, launcher), stdout=log, stderr=log, start_new_session=True
        )


def wait_for(process: subprocess.Popen[bytes] | ForkedRanks, timeout_s: float = TIMEOUT_S) -> int:
    """Wait for the ranks; kill their whole session when they take too long."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def run_ranks(run: RunFolder, spec: JobSpec, attempt: int = 1) -> int:
    """Run forked ranks to their end."""
    run.logs(attempt).mkdir(parents=True, exist_ok=True)
    log = run.logs(attempt) / "ranks.log"
    return wait_for(ForkedRanks(run.root, environment(run, spec, attempt), spec.world_size, log))


def log_text(run: RunFolder, attempt: int = 1) -> str:
    """What the ranks printed, for the message of a failing test."""
    return (run.logs(attempt) / "ranks.log").read_text()[-6000:]


def metrics(run: RunFolder, kind: str, attempt: int | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind."""
    lines = [msgspec.json.decode(line) for line in run.metrics.read_bytes().splitlines()]
    return [line for line in lines if line["kind"] == kind and attempt in (None, line["attempt"])]


def losses(run: RunFolder, attempt: int | None = None) -> dict[int, float]:
    """Training loss by step; of the last attempt that did the step."""
    return {line["step"]: line["loss"] for line in metrics(run, "train", attempt)}


def started(run: RunFolder, attempt: int = 1) -> Started:
    """started.json, which must be there."""
    record = read_record(run.started(attempt), Started)
    assert record is not None, log_text(run, attempt)
    return record


def wait_for_step(run: RunFolder, process: subprocess.Popen[bytes], step: int, timeout_s: float = TIMEOUT_S) -> None:
    """Return once metrics.jsonl has this step."""
    deadline = time.monotonic() + timeout_s
    while not (run.metrics.exists() and step in losses(run)):
        assert process.poll() is None, log_text(run)
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.02)


def stages(run: RunFolder) -> list[str]:
    """The stages in events.jsonl, in order."""
    return [msgspec.json.decode(line, type=Event).stage for line in run.events.read_bytes().splitlines()]


def _start_ticks() -> int:
    stat = Path("/proc/self/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])
