"""Jobs and plans for the tests that render and start: small, complete, and made without Hydra."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launcher.planner.types import MemoryPlan, Phase, RankPlan, Term, TermKind, Verdict
from launcher.render.render import render
from launcher.render.types import LaunchPlan
from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    ClusterKind,
    ClusterSpec,
    DataSpec,
    DeviceSpec,
    Dtype,
    JobSpec,
    LoraBias,
    Loss,
    MethodKind,
    MethodSpec,
    ModelSpec,
    Offload,
    Optimizer,
    Precision,
    Program,
    QuantType,
    Schedule,
    ShardKind,
    ShardSpec,
    TrackerKind,
    TrackerSpec,
    TrainSpec,
)

CPU = DeviceSpec(
    name="cpu",
    kind="cpu",
    memory_bytes=8 * 1024**3,
    compute_capability=None,
    memory_bandwidth_bytes_per_s=None,
    source="test",
)
H100 = DeviceSpec(
    name="h100-80g",
    kind="cuda",
    memory_bytes=85_520_809_984,
    compute_capability=(9, 0),
    memory_bandwidth_bytes_per_s=3_350_000_000_000,
    source="test",
)
LORA: dict[str, Any] = {
    "rank": 16,
    "alpha": 32.0,
    "dropout": 0.05,
    "targets": ("all-linear",),
    "bias": LoraBias.NONE,
}
QLORA = LORA | {
    "quant_type": QuantType.NF4,
    "double_quant": True,
    "compute_dtype": Dtype.BFLOAT16,
    "storage_dtype": Dtype.UINT8,
}
METHODS = {
    MethodKind.FULL: MethodSpec(kind=MethodKind.FULL),
    MethodKind.LORA: MethodSpec(kind=MethodKind.LORA, **LORA),
    MethodKind.QLORA: MethodSpec(kind=MethodKind.QLORA, **QLORA),
}
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
    return JobSpec(
        model=ModelSpec(
            name="smollm2-135m",
            source=source,
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct" if source == "hub" else None,
            revision="main" if source == "hub" else None,
            license="apache-2.0",
            gated=False,
            path="/models/tiny" if source == "path" else None,
            config={"hidden_size": 576},
        ),
        method=METHODS[method],
        shard=dataclasses.replace(SHARDS[shard], offload=offload),
        data=DataSpec(name="stdlib", path=None, eval_path=None, eval_fraction=0.1, max_samples=None),
        train=TrainSpec(
            epochs=1.0,
            max_steps=None,
            global_batch=16,
            micro_batch=4,
            sequence_length=512,
            packing=False,
            precision=precision,
            optimizer=Optimizer.ADAMW,
            learning_rate=2e-4,
            weight_decay=0.0,
            schedule=Schedule.COSINE,
            warmup_ratio=0.03,
            max_grad_norm=1.0,
            activation_checkpointing=ActivationCheckpointing.FULL,
            attention=Attention.SDPA,
            loss=Loss.CROSS_ENTROPY,
            log_every_steps=1,
            eval_every_steps=None,
            save_every_steps=None,
            keep_checkpoints=2,
            dataloader_workers=0,
            seed=42,
        ),
        device=device,
        cluster=ClusterSpec(kind=ClusterKind.LOCAL),
        tracker=TrackerSpec(kind=tracker, project="fitlaunch" if tracker is TrackerKind.WANDB else None),
        program=program,
        gpus_per_node=gpus,
        nodes=1,
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
