"""Changes that leave the training as it is: the same global batch, the same loss, the same optimizer.

A sharding keeps its own rules: FSDP2 offloads parameters and states together, ZeRO-2 states only, 8-bit AdamW runs
under neither FSDP2 nor offload, and an 8-bit base under neither FSDP2 nor ZeRO-3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from launcher.planner.fit.change import Change, applied, resharded, with_train
from launcher.spec import (
    ActivationCheckpointing,
    JobSpec,
    Loss,
    Offload,
    Optimizer,
    Program,
    QuantType,
    ShardKind,
)


def settings(spec: JobSpec, hidden_size: int) -> Iterator[tuple[Change, ...]]:
    """Every combination of equivalent changes, beginning with none of them; the micro batch is not among them."""
    choices = (checkpointing(spec), _losses(spec), _shardings(spec, hidden_size))
    for chosen in itertools.product(*((None, *options) for options in choices)):
        changes = tuple(change for change in chosen if change is not None)
        if can_recompute(applied(changes, spec)):
            yield changes


def can_recompute(spec: JobSpec) -> bool:
    """Whether a job's checkpointing goes with its sharding: selective does not with ZeRO-3's gathering."""
    selective = spec.train.activation_checkpointing is ActivationCheckpointing.SELECTIVE
    return not (selective and spec.shard.kind is ShardKind.ZERO3)


def smaller_micro_batch(size: int) -> Change:
    """A smaller micro batch than the one asked for; accumulation makes up the global batch."""
    return Change(
        overrides=(f"train.micro_batch={size}",),
        note=f"micro batch {size}, more accumulation",
        apply=lambda job: job.with_micro_batch(size),
    )


RECOMPUTED = {
    ActivationCheckpointing.SELECTIVE: "the MLPs' activations are recomputed",
    ActivationCheckpointing.FULL: "activations are recomputed",
    ActivationCheckpointing.REENTRANT: "activations are recomputed, nothing of 8-bit layers is kept",
}


def checkpointing(spec: JobSpec) -> tuple[Change, ...]:
    """Forms of activation checkpointing that keep less than the job's does, the one that keeps the least last."""
    forms = list(RECOMPUTED) if spec.method.quant_type is QuantType.INT8 else list(RECOMPUTED)[:2]
    given = spec.train.activation_checkpointing
    less = forms if given is ActivationCheckpointing.NONE else forms[forms.index(given) + 1 :] if given in forms else []
    return tuple(
        Change(
            overrides=(f"train.activation_checkpointing={form}",),
            note=RECOMPUTED[form],
            apply=lambda job, form=form: with_train(job, activation_checkpointing=form),  # type: ignore[misc]
        )
        for form in less
    )


LOSSES = {Loss.CHUNKED: "logits of a few tokens at a time", Loss.FUSED_LINEAR: "no logits (needs liger-kernel)"}


def _losses(spec: JobSpec) -> tuple[Change, ...]:
    if spec.train.loss is not Loss.CROSS_ENTROPY:
        return ()
    return tuple(
        Change(
            overrides=(f"train.loss={loss}",),
            note=note,
            apply=lambda job, loss=loss: with_train(job, loss=loss),  # type: ignore[misc]
        )
        for loss, note in LOSSES.items()
        if can_lose(spec, loss)
    )


def can_lose(spec: JobSpec, loss: Loss) -> bool:
    """Whether a loss goes with the rest of a job: Liger's is CUDA's, and the chunked one leaves out a router's."""
    if loss is Loss.FUSED_LINEAR:
        return spec.device.kind == "cuda"
    return not spec.model.config.get("output_router_logits")


SHARDINGS = (
    (ShardKind.ZERO2, Offload.NONE),
    (ShardKind.FSDP, Offload.NONE),
    (ShardKind.ZERO3, Offload.NONE),
    (ShardKind.ZERO2, Offload.OPTIMIZER),
    (ShardKind.ZERO3, Offload.OPTIMIZER),
    (ShardKind.FSDP, Offload.ALL),
    (ShardKind.ZERO3, Offload.ALL),
)
OFFLOADED = {Offload.OPTIMIZER: "optimizer states", Offload.ALL: "parameters and optimizer states"}


def _shardings(spec: JobSpec, hidden_size: int) -> tuple[Change, ...]:
    """Every other sharding and offload that the job's other choices allow."""
    return tuple(
        sharding(spec, kind, offload, hidden_size)
        for kind, offload in SHARDINGS
        if (kind, offload) != (spec.shard.kind, spec.shard.offload) and can_shard(spec, kind, offload)
    )


def sharding(spec: JobSpec, kind: ShardKind, offload: Offload, hidden_size: int) -> Change:
    """The change to a sharding and an offload."""
    return Change(
        overrides=shard_overrides(spec, kind, offload),
        note=f"{kind}" + (f", {OFFLOADED[offload]} on the host" if offload in OFFLOADED else ""),
        apply=lambda job: resharded(job, kind, offload, hidden_size),
    )


def can_shard(spec: JobSpec, kind: ShardKind, offload: Offload) -> bool:
    """Whether a sharding goes with the rest of a job."""
    eight_bit = spec.train.optimizer is not Optimizer.ADAMW
    if spec.method.quant_type is QuantType.INT8 and kind in (ShardKind.FSDP, ShardKind.ZERO3):
        return False
    if offload is Offload.NONE and spec.world_size == 1:
        return False
    if offload is not Offload.NONE and (eight_bit or spec.device.kind == "cpu"):
        return False
    return not (kind is ShardKind.FSDP and (eight_bit or spec.program is Program.DEEPSPEED))


def shard_overrides(spec: JobSpec, kind: ShardKind, offload: Offload) -> tuple[str, ...]:
    """What to type for a sharding and an offload, where they differ from the job's."""
    wanted = (f"shard={kind}",) if kind is not spec.shard.kind else ()
    return (*wanted, f"shard.offload={offload}") if offload is not spec.shard.offload else wanted
