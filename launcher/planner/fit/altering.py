"""Changes of the training itself: less trained, fewer bits, shorter sequences, more GPUs.

They come in kinds, and within a kind from the mildest on: of two lengths that fit, the longer changes less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from launcher.planner.cards import with_more_gpus
from launcher.planner.fit.change import Change, with_train
from launcher.precision import COMPUTE
from launcher.shards import storage_dtype
from launcher.spec import (
    JobSpec,
    LoraBias,
    MethodKind,
    MethodSpec,
    Offload,
    Optimizer,
    QuantType,
    ShardKind,
)

SHORTEST_SEQUENCE = 128


def kinds(spec: JobSpec) -> tuple[tuple[Change, ...], ...]:
    """The changes by kind, each kind beginning with its mildest."""
    groups = (_eight_bit_optimizer(spec), _more_gpus(spec), _lighter_methods(spec), _shorter_sequences(spec))
    return tuple(kind for group in groups if (kind := tuple(group)))


def _shorter_sequences(spec: JobSpec) -> Iterator[Change]:
    length = spec.train.sequence_length // 2
    while length >= SHORTEST_SEQUENCE:
        yield shorter_sequences(length)
        length //= 2


def shorter_sequences(length: int) -> Change:
    """Rows are cut, or packed, to fewer tokens."""
    return Change(
        overrides=(f"train.sequence_length={length}",),
        note=f"sequences of {length} tokens",
        apply=lambda job: with_train(job, sequence_length=length),
    )


def _more_gpus(spec: JobSpec) -> Iterator[Change]:
    if spec.device.kind != "cuda":
        return
    for more in with_more_gpus(spec):
        yield Change(
            overrides=(f"gpus={more.gpus_per_node}",),
            note=f"{more.gpus_per_node} GPUs a node",
            apply=lambda job, gpus=more.gpus_per_node: dataclasses.replace(job, gpus_per_node=gpus),  # type: ignore[misc]
        )


def _eight_bit_optimizer(spec: JobSpec) -> Iterator[Change]:
    """bitsandbytes' AdamW, which runs under neither FSDP2 nor offload."""
    shard = spec.shard
    plain = spec.train.optimizer is Optimizer.ADAMW and shard.offload is Offload.NONE
    if not plain or shard.kind is ShardKind.FSDP or spec.device.kind != "cuda":
        return
    yield Change(
        overrides=(f"train.optimizer={Optimizer.ADAMW_8BIT}",),
        note="8-bit optimizer states",
        apply=lambda job: with_train(job, optimizer=Optimizer.ADAMW_8BIT),
    )


# The defaults of conf/method/lora.yaml and qlora.yaml.
DEFAULT_LORA = MethodSpec(
    kind=MethodKind.LORA, rank=16, alpha=32.0, dropout=0.0, targets=("all-linear",), bias=LoraBias.NONE
)


def _lighter_methods(spec: JobSpec) -> Iterator[Change]:
    if spec.method.kind is MethodKind.FULL:
        yield Change(
            overrides=("method=lora",),
            note="trains adapters instead of the whole model",
            apply=lambda job: dataclasses.replace(job, method=DEFAULT_LORA),
        )
    if spec.method.kind is not MethodKind.QLORA and spec.device.kind == "cuda":
        yield quantised()
    if spec.method.quant_type is QuantType.INT8:
        yield Change(overrides=(f"method.quant_type={QuantType.NF4}",), note="4-bit weights", apply=as_qlora)


def quantised() -> Change:
    """LoRA over 4-bit weights."""
    return Change(overrides=("method=qlora",), note="trains adapters over 4-bit weights", apply=as_qlora)


def as_qlora(job: JobSpec) -> JobSpec:
    """The job with a 4-bit base; LoRA's own options stay."""
    base = DEFAULT_LORA if job.method.kind is MethodKind.FULL else job.method
    compute = COMPUTE[job.train.precision]
    method = dataclasses.replace(
        base,
        kind=MethodKind.QLORA,
        quant_type=QuantType.NF4,
        double_quant=True,
        compute_dtype=compute,
        storage_dtype=storage_dtype(QuantType.NF4, job.shard.kind, compute),
    )
    return dataclasses.replace(job, method=method)
