"""What goes between ranks and to the host: bytes that one rank receives, for each pass and for each optimizer step.

A ring passes (N-1)/N of a tensor to every rank for an all-gather or a reduce-scatter, and twice that for an all-reduce
(Patarasuk and Yuan 2009; docs of NVIDIA's nccl-tests, PERFORMANCE.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.inventory import State
from launcher.planner.sharding import rows
from launcher.planner.workload import Workload
from launcher.spec import Offload, ShardKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Bytes for one rank. gathered and reduced go between ranks, pulled and pushed between a rank and its host.

    The first four are of every pass, the last three of every optimizer step. host_stepped counts elements that the
    host steps for one rank.
    """

    gathered: float = 0.0
    reduced: float = 0.0
    pulled: float = 0.0
    pushed: float = 0.0
    step_reduced: float = 0.0
    step_pulled: float = 0.0
    host_stepped: float = 0.0


def transfers(work: Workload) -> Transfers:
    """What a job's sharding and offload send."""
    return SENDERS[work.spec.shard.kind](work)


def _others(work: Workload) -> float:
    return (work.world_size - 1) / work.world_size


def _trained_bytes(work: Workload) -> float:
    return float(work.inventory.trained_numel * work.gradient_bytes)


def _ddp(work: Workload) -> Transfers:
    """One all-reduce an optimizer step: accelerate synchronises in the last of the accumulated passes only."""
    return Transfers(step_reduced=2 * _others(work) * _trained_bytes(work))


def _zero2(work: Workload) -> Transfers:
    """Gradients go to their owners in every pass; the stepped weights come back after the step."""
    local = work.inventory.trained_numel / work.world_size
    held = work.dtypes.trained.num_bytes
    sent = Transfers(
        reduced=_others(work) * _trained_bytes(work),
        step_reduced=_others(work) * work.inventory.trained_numel * held,
    )
    if work.spec.shard.offload is Offload.NONE:
        return sent
    return Transfers(
        reduced=sent.reduced,
        step_reduced=sent.step_reduced,
        pushed=local * work.gradient_bytes,
        step_pulled=local * held,
        host_stepped=local,
    )


def _zero3(work: Workload) -> Transfers:
    """All weights are gathered in the forward and again in the backward pass (ZeRO, arXiv:1910.02054, section 7.2)."""
    local = work.inventory.trained_numel / work.world_size
    whole = _gathered_bytes(work)
    offload = work.spec.shard.offload
    return Transfers(
        gathered=2 * _others(work) * whole,
        reduced=_others(work) * _trained_bytes(work),
        pulled=2 * whole / work.world_size if offload is Offload.ALL else 0.0,
        pushed=0.0 if offload is Offload.NONE else local * work.gradient_bytes,
        step_pulled=local * work.dtypes.trained.num_bytes if offload is Offload.OPTIMIZER else 0.0,
        host_stepped=0.0 if offload is Offload.NONE else local,
    )


def _fsdp(work: Workload) -> Transfers:
    """As ZeRO-3; a block that is not resharded is gathered once. Offloaded shards cross as they are stored."""
    times = 2 if work.spec.shard.reshard_after_forward else 1
    offloads = work.spec.shard.offload is Offload.ALL
    local = work.inventory.trained_numel / work.world_size
    stored = sum(rows.shard_bytes(work, state) for state in State) if offloads else 0
    return Transfers(
        gathered=times * _others(work) * _gathered_bytes(work),
        reduced=_others(work) * work.inventory.trained_numel * rows.reduce_bytes(work),
        pulled=float(times * stored),
        pushed=local * work.gradient_bytes if offloads else 0.0,
        host_stepped=local if offloads else 0.0,
    )


def _gathered_bytes(work: Workload) -> float:
    """The whole model as it is sent: 4-bit weights packed, the others in the dtype they are gathered in."""
    return sum(
        numel * (0.5 if state is State.QUANTISED else work.gathered_bytes(state))
        for state in State
        if (numel := work.inventory.numel(state))
    )


SENDERS = {ShardKind.DDP: _ddp, ShardKind.FSDP: _fsdp, ShardKind.ZERO2: _zero2, ShardKind.ZERO3: _zero3}
