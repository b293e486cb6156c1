"""What would make a job fit: changes as ready overrides, every one planned again and really fitting.

Changes that leave the training as it is come first, the cheapest in speed first; where they cannot do it, alone or
together, come those that change it. A sharding keeps its own rules: FSDP2 offloads parameters and states together,
ZeRO-2 states only, 8-bit AdamW runs under neither FSDP2 nor offload, and DeepSpeed has no pure bf16.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher.planner.cards import with_more_gpus
from launcher.planner.estimate import Estimate, Estimator, micro_batches
from launcher.planner.types import Suggestion
from launcher.precision import COMPUTE, is_deepspeed
from launcher.shards import shard_defaults
from launcher.spec import (
    ActivationCheckpointing,
    Dtype,
    JobSpec,
    LoraBias,
    Loss,
    MethodKind,
    MethodSpec,
    Offload,
    Optimizer,
    Precision,
    Program,
    QuantType,
    ShardKind,
)

MOST_SUGGESTIONS = 3
SHORTEST_SEQUENCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to do differently: what it costs in speed (a rank, not a time), and the words for it."""

    overrides: tuple[str, ...]
    cost: int
    note: str
    apply: Callable[[JobSpec], JobSpec]


def suggestions(estimator: Estimator, spec: JobSpec, found: Estimate) -> tuple[Suggestion, ...]:
    """Up to three ways to make a job fit. spec is the job as asked for, found its estimate."""
    kept = list(_fitting(estimator, spec, _equivalent(spec, estimator), changes_training=False))
    if len(kept) < MOST_SUGGESTIONS:
        base, helped = _strongest(estimator, found, spec)
        kept += _fitting(estimator, spec, ((c,) for c in _altering(spec)), changes_training=True)
        if len(kept) < MOST_SUGGESTIONS and helped:
            combined = ((*helped, change) for change in _altering(base))
            kept += _fitting(estimator, spec, combined, changes_training=True)
    return tuple(_without_supersets(kept))[:MOST_SUGGESTIONS]


def _fitting(
    estimator: Estimator, spec: JobSpec, combinations: Iterator[tuple[Change, ...]], *, changes_training: bool
) -> Iterator[Suggestion]:
    """Those that fit, as they come, at most as many as are shown; no superset of one that fits already."""
    sufficient: list[frozenset[str]] = []
    for changes in combinations:
        overrides = tuple(override for change in changes for override in change.overrides)
        if any(smaller <= set(overrides) for smaller in sufficient):
            continue
        changed = spec
        for change in changes:
            changed = change.apply(changed)
        estimate = estimator.best(changed)
        if not estimate.fits:
            continue
        sufficient.append(frozenset(overrides))
        yield Suggestion(
            overrides=overrides,
            process_bytes=estimate.need.process_bytes,
            changes_training=changes_training,
            note="; ".join(change.note for change in changes),
        )
        if len(sufficient) == MOST_SUGGESTIONS:
            return


def _without_supersets(kept: Sequence[Suggestion]) -> Iterator[Suggestion]:
    for index, suggestion in enumerate(kept):
        if not any(set(other.overrides) <= set(suggestion.overrides) for other in kept[:index]):
            yield suggestion


def _equivalent(spec: JobSpec, estimator: Estimator) -> Iterator[tuple[Change, ...]]:
    """Every combination that leaves the training as it is, the cheapest first."""
    choices: list[list[Change]] = [_smaller_micro_batches(spec), _checkpointing(spec), _fused_loss(spec)]
    choices.append(_shardings(spec, estimator.shape.hidden_size))
    combinations = (
        tuple(change for change in chosen if change is not None)
        for chosen in itertools.product(*([None, *options] for options in choices))
    )
    yield from sorted(filter(None, combinations), key=lambda changes: (sum(c.cost for c in changes), len(changes)))


def _smaller_micro_batches(spec: JobSpec) -> list[Change]:
    """Smaller micro batches than the one asked for, the largest first; the global batch stays."""
    if spec.train.micro_batch is None:
        return []
    smaller = [size for size in reversed(micro_batches(spec)) if size < spec.micro_batch]
    return [
        Change(
            overrides=(f"train.micro_batch={size}",),
            cost=1 + index,
            note=f"micro batch {size}, more accumulation",
            apply=lambda job, size=size: job.with_micro_batch(size),  # type: ignore[misc]
        )
        for index, size in enumerate(smaller)
    ]


def _checkpointing(spec: JobSpec) -> list[Change]:
    full = ActivationCheckpointing.FULL
    if spec.train.activation_checkpointing is full:
        return []
    return [
        Change(
            overrides=(f"train.activation_checkpointing={full}",),
            cost=3,
            note="activations are recomputed",
            apply=lambda job: with_train(job, activation_checkpointing=full),
        )
    ]


def _fused_loss(spec: JobSpec) -> list[Change]:
    if spec.train.loss is Loss.FUSED_LINEAR or spec.device.kind != "cuda":
        return []
    return [
        Change(
            overrides=(f"train.loss={Loss.FUSED_LINEAR}",),
            cost=2,
            note="the loss without materialised logits",
            apply=lambda job: with_train(job, loss=Loss.FUSED_LINEAR),
        )
    ]


# From the cheapest to the most expensive in communication and transfers.
SHARDINGS = (
    (ShardKind.ZERO2, Offload.NONE),
    (ShardKind.FSDP, Offload.NONE),
    (ShardKind.ZERO3, Offload.NONE),
    (ShardKind.ZERO2, Offload.OPTIMIZER),
    (ShardKind.ZERO3, Offload.OPTIMIZER),
    (ShardKind.FSDP, Offload.ALL),
    (ShardKind.ZERO3, Offload.ALL),
)


def _shardings(spec: JobSpec, hidden_size: int) -> list[Change]:
    """Every other sharding and offload that the job's other choices allow."""
    allowed = [
        (kind, offload)
        for kind, offload in SHARDINGS
        if (kind, offload) != (spec.shard.kind, spec.shard.offload) and can_shard(spec, kind, offload)
    ]
    return [
        Change(
            overrides=shard_overrides(spec, kind, offload),
            cost=4 + SHARDINGS.index((kind, offload)),
            note=f"{kind}" + (f", {OFFLOADED[offload]} in host RAM" if offload in OFFLOADED else ""),
            apply=lambda job, kind=kind, offload=offload: resharded(job, kind, offload, hidden_size),  # type: ignore[misc]
        )
        for kind, offload in allowed
    ]


OFFLOADED = {Offload.OPTIMIZER: "optimizer states", Offload.ALL: "parameters and optimizer states"}


def can_shard(spec: JobSpec, kind: ShardKind, offload: Offload) -> bool:
    """Whether a sharding goes with the rest of a job."""
    train = spec.train
    eight_bit = train.optimizer is not Optimizer.ADAMW
    if offload is Offload.NONE and spec.world_size == 1:
        return False
    if offload is not Offload.NONE and (eight_bit or spec.device.kind == "cpu"):
        return False
    if kind is ShardKind.FSDP and (eight_bit or spec.program is Program.DEEPSPEED):
        return False
    return not (is_deepspeed(kind) and train.precision is Precision.BF16_PURE)


def shard_overrides(spec: JobSpec, kind: ShardKind, offload: Offload) -> tuple[str, ...]:
    """What to type for a sharding and an offload, where they differ from the job's."""
    wanted = (f"shard={kind}",) if kind is not spec.shard.kind else ()
    return (*wanted, f"shard.offload={offload}") if offload is not spec.shard.offload else wanted


def resharded(job: JobSpec, kind: ShardKind, offload: Offload, hidden_size: int) -> JobSpec:
    """The job under another sharding with its default sizes; 4-bit storage follows the sharding."""
    shard = job.shard
    if kind is not shard.kind:
        shard = shard_defaults(kind, hidden_size, on_cuda=job.device.kind == "cuda")
    method = job.method
    if method.kind is MethodKind.QLORA:
        method = dataclasses.replace(method, storage_dtype=storage_dtype(kind, job))
    return dataclasses.replace(job, shard=dataclasses.replace(shard, offload=offload), method=method)


def storage_dtype(kind: ShardKind, job: JobSpec) -> Dtype:
    """FSDP2 shards 4-bit weights only in the dtype of the others."""
    return COMPUTE[job.train.precision] if kind is ShardKind.FSDP else Dtype.UINT8


def with_train(job: JobSpec, **values: object) -> JobSpec:
    """The job with other values in its train section."""
    return dataclasses.replace(job, train=dataclasses.replace(job.train, **values))  # type: ignore[arg-type]


def _strongest(estimator: Estimator, found: Estimate, spec: JobSpec) -> tuple[JobSpec, tuple[Change, ...]]:
    """The combination of equivalent changes that needs the least, with its job; nothing where nothing helps."""
    best, best_job = found, spec
    best_changes: tuple[Change, ...] = ()
    for changes in _equivalent(spec, estimator):
        if any("offload" in override for change in changes for override in change.overrides):
            continue
        job = spec
        for change in changes:
            job = change.apply(job)
        tried = estimator.best(job)
        if tried.need.process_bytes < best.need.process_bytes:
            best, best_job, best_changes = tried, job, changes
    return best_job, best_changes


def _altering(spec: JobSpec) -> Iterator[Change]:
    """Changes of the training itself: fewer trained or smaller weights, shorter sequences, more GPUs."""
    yield from _lighter_methods(spec)
    length = spec.train.sequence_length // 2
    while length >= SHORTEST_SEQUENCE:
        yield Change(
            overrides=(f"train.sequence_length={length}",),
            cost=0,
            note=f"sequences of {length} tokens",
            apply=lambda job, length=length: with_train(job, sequence_length=length),  # type: ignore[misc]
        )
        length //= 2
    if spec.device.kind == "cuda" and spec.shard.kind is not ShardKind.DDP:
        for more in with_more_gpus(spec):
            yield Change(
                overrides=(f"gpus={more.gpus_per_node}",),
                cost=0,
                note=f"{more.gpus_per_node} GPUs a node",
                apply=lambda job, gpus=more.gpus_per_node: dataclasses.replace(job, gpus_per_node=gpus),  # type: ignore[misc]
            )


# The defaults of conf/method/lora.yaml and qlora.yaml.
DEFAULT_LORA = MethodSpec(
    kind=MethodKind.LORA, rank=16, alpha=32.0, dropout=0.0, targets=("all-linear",), bias=LoraBias.NONE
)


def _lighter_methods(spec: JobSpec) -> Iterator[Change]:
    if spec.method.kind is MethodKind.FULL:
        yield Change(
            overrides=("method=lora",),
            cost=0,
            note="trains adapters instead of the whole model",
            apply=lambda job: dataclasses.replace(job, method=DEFAULT_LORA),
        )
    if spec.method.kind is not MethodKind.QLORA and spec.device.kind == "cuda":
        yield Change(
            overrides=("method=qlora",),
            cost=0,
            note="trains adapters over 4-bit weights",
            apply=as_qlora,
        )


def as_qlora(job: JobSpec) -> JobSpec:
    """The job with a 4-bit base; LoRA's own options stay."""
    base = job.method if job.method.kind is MethodKind.LORA else DEFAULT_LORA
    method = dataclasses.replace(
        base,
        kind=MethodKind.QLORA,
        quant_type=QuantType.NF4,
        double_quant=True,
        compute_dtype=COMPUTE[job.train.precision],
        storage_dtype=storage_dtype(job.shard.kind, job),
    )
    return dataclasses.replace(job, method=method)
