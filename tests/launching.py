"""Jobs and plans for the tests that render and start: small, complete, and made without Hydra."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launcher.planner.types import MemoryPlan, Phase, RankPlan, Term, TermKind, Verdict
from launcher.render.render import render
from launcher.render.types import LaunchPlan
from launcher.spec import (
    DeviceSpec,
    JobSpec,
    MethodKind,
    Offload,
    Precision,
    Program,
    ShardKind,
    ShardSpec,
    TrackerKind,
)
from launcher.units import GIB
from tests.specs import device_spec, job_spec, method_spec

CPU = device_spec("cpu", "cpu", 8 * GIB)
H100 = device_spec("h100-80g", memory_bytes=85_520_809_984, compute_capability=(9, 0), bandwidth=3_350_000_000_000)
METHODS = {kind: method_spec(kind, dropout=0.05) for kind in MethodKind}
ZERO = {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 200_000_000, "overlap_comm": True}
SHARDS = {
    ShardKind.DDP: ShardSpec(kind=ShardKind.DDP, offload=Offload.NONE, bucket_cap_mb=25, gradient_as_bucket_view=True),
    ShardKind.FSDP: ShardSpec(kind=ShardKind.FSDP, offload=Offload.NONE, reshard_after_forward=True),
    ShardKind.ZERO2: ShardSpec(kind=ShardKind.ZERO2, offload=Offload.NONE, **ZERO),
    ShardKind.ZERO3: ShardSpec(
        kind=ShardKind.ZERO3,
        offload=Offload.NONE,
        **ZERO,
        prefetch_bucket_size=15_000_000,
        param_persistence_threshold=100_000,
        max_live_parameters=1_000_000_000,
        max_reuse_distance=1_000_000_000,
        sub_group_size=1_000_000_000,
    ),
}


def make_spec(
    *,
    method: MethodKind = MethodKind.LORA,
    shard: ShardKind = ShardKind.DDP,
    offload: Offload = Offload.NONE,
    precision: Precision = Precision.BF16_MIXED,
    device: DeviceSpec = CPU,
    program: Program = Program.TORCHRUN,
    tracker: TrackerKind = TrackerKind.TENSORBOARD,
    source: str = "hub",
    gpus: int = 2,
) -> JobSpec:
    """A job whose micro batch is chosen."""
    on_hub = {"source": "hub", "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main", "path": None}
    return job_spec(
        model={"name": "smollm2-135m", "license": "apache-2.0", "config": {"hidden_size": 576}}
        | (on_hub if source == "hub" else {"source": source, "path": "/models/tiny" if source == "path" else None}),
        method=METHODS[method],
        shard=dataclasses.replace(SHARDS[shard], offload=offload),
        train={"micro_batch": 4, "precision": precision},
        device=device,
        tracker=tracker,
        program=program,
        gpus=gpus,
    )


def make_memory_plan(spec: JobSpec) -> MemoryPlan:
    """A plan with one term: enough to be written down."""
    term = Term(
        name="weights",
        kind=TermKind.WEIGHTS,
        size_bytes=269_030_016,
        phases=tuple(Phase),
        formula="134,515,008 x 2 B",
        source="test",
    )
    return MemoryPlan(
        spec=spec,
        instrument="closed_form",
        ranks=(RankPlan(ranks=tuple(range(spec.gpus_per_node)), terms=(term,)),),
        allocated_bytes=269_030_016,
        reserved_bytes=270_532_608,
        process_bytes=800_000_000,
        process_low_bytes=700_000_000,
        process_high_bytes=900_000_000,
        least_capacity_bytes=900_000_000,
        host_ram_bytes_per_node=2_000_000_000,
        checkpoint_bytes=20_000_000,
        result_bytes=20_000_000,
        capacity_bytes=spec.device.memory_bytes,
        verdict=Verdict.FITS,
        smallest_card=None,
        suggestions=(),
    )


def make_launch(
    runs_dir: Path,
    *,
    spec: JobSpec | None = None,
    run_id: str = "20261122-031502-smollm2-135m-lora-ddp-3f9a",
    python: str = "/venv/bin/python",
    master_port: int = 23_456,
    **options: Any,
) -> LaunchPlan:
    """The launch plan of a job."""
    spec = spec or make_spec()
    return render(
        spec,
        make_memory_plan(spec),
        run_id=run_id,
        runs_dir=runs_dir,
        python=python,
        master_port=master_port,
        **options,
    )
