"""JobSpecs for tests and benchmarks, complete, made without Hydra and without a host.

A caller names what its jobs are about; what most of them want besides is here once, so that a new field of a spec has
one place to go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from launcher.precision import COMPUTE
from launcher.shards import storage_dtype
from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    ClusterKind,
    ClusterSpec,
    DataSpec,
    DeviceSpec,
    JobSpec,
    LoraBias,
    Loss,
    MethodKind,
    MethodSpec,
    ModelSpec,
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

MODEL = ModelSpec(
    name="tiny", source="path", hub_id=None, revision=None, license="unknown", gated=False, path=".", config={}
)
DATA = DataSpec(name="stdlib", path=None, eval_path=None, eval_fraction=0.1, max_samples=None)
TRAIN = TrainSpec(
    epochs=1.0,
    max_steps=None,
    global_batch=16,
    micro_batch=1,
    sequence_length=512,
    packing=False,
    precision=Precision.BF16_MIXED,
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
)


def device_spec(
    name: str,
    kind: str = "cuda",
    memory_bytes: int | None = None,
    *,
    compute_capability: tuple[int, int] | None = None,
    bandwidth: int | None = None,
    source: str = "test",
) -> DeviceSpec:
    """A device; bandwidth: of its memory, in bytes a second."""
    return DeviceSpec(
        name=name,
        kind=kind,
        memory_bytes=memory_bytes,
        compute_capability=compute_capability,
        memory_bandwidth_bytes_per_s=bandwidth,
        source=source,
    )


def method_spec(
    kind: MethodKind,
    *,
    shard: ShardKind = ShardKind.DDP,
    precision: Precision = Precision.BF16_MIXED,
    rank: int = 16,
    dropout: float = 0.0,
    targets: tuple[str, ...] | None = ("all-linear",),
    quant_type: QuantType = QuantType.NF4,
    double_quant: bool = True,
) -> MethodSpec:
    """What is trained, with what does not belong to the method left out."""
    if kind is MethodKind.FULL:
        return MethodSpec(kind=kind)
    lora = MethodSpec(kind=kind, rank=rank, alpha=2.0 * rank, dropout=dropout, targets=targets, bias=LoraBias.NONE)
    if kind is MethodKind.LORA:
        return lora
    compute = COMPUTE[precision]
    return dataclasses.replace(
        lora,
        quant_type=quant_type,
        double_quant=double_quant and quant_type is not QuantType.INT8,
        compute_dtype=compute,
        storage_dtype=storage_dtype(quant_type, shard, compute),
    )


def job_spec(
    *,
    method: MethodSpec,
    shard: ShardSpec,
    device: DeviceSpec,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    tracker: TrackerKind = TrackerKind.NONE,
    program: Program = Program.TORCHRUN,
    gpus: int = 1,
    nodes: int = 1,
) -> JobSpec:
    """A job on this host. model, data and train: fields that are not as above."""
    return JobSpec(
        model=dataclasses.replace(MODEL, **(model or {})),
        method=method,
        shard=shard,
        data=dataclasses.replace(DATA, **(data or {})),
        train=dataclasses.replace(TRAIN, **(train or {})),
        device=device,
        cluster=ClusterSpec(kind=ClusterKind.LOCAL),
        tracker=TrackerSpec(kind=tracker, project="fitlaunch" if tracker is TrackerKind.WANDB else None),
        program=program,
        gpus_per_node=gpus,
        nodes=nodes,
    )
