"""What ZeRO-3 gathers whole: small parameters for good, the others as long as they are soon reused; and what autograd
keeps of them.

Source: deepspeed 0.19.8 runtime/zero/partition_parameters.py and partitioned_param_coordinator.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import lru_cache

from launcher.models import Role
from launcher.planner import quantisation
from launcher.planner.activations import kept_by_earlier
from launcher.planner.block import has_adapted_experts
from launcher.planner.inventory import Held
from launcher.planner.moments import BEFORE_GRADIENTS, EMBEDDING, HEAD, HEAD_FORWARD, Moment, Part, Place, Point
from launcher.planner.sharding import prefetch
from launcher.planner.sharding import zero3_layout as layout
from launcher.planner.sharding.prefetch import Order
from launcher.planner.sharding.rows import storage_bytes
from launcher.planner.terms import FROM_FIRST_STEP, at, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import Loss

COORDINATOR = "deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py"
KEPT = "4-bit weights kept by autograd, whole"


def persistent_terms(work: Workload) -> tuple[Term, ...]:
    """Small parameters, whole from the first step on."""
    size = sum(
        count * numel * width
        for p, count in work.inventory.counted()
        if layout.is_persistent(work, p)
        for numel, width in [layout.stored(work, p)]
    )
    return term(
        "persistent parameters, whole",
        TermKind.SHARDING_BUFFERS,
        size,
        FROM_FIRST_STEP,
        formula=f"all of at most {work.spec.shard.param_persistence_threshold:,} elements",
        source=f"{layout.PARTITIONS} ds_persist",
    )


@lru_cache(maxsize=64)
def live_bytes(work: Workload, order: Order = Order.STEP) -> prefetch.Live:
    """What is gathered at a time, followed through a forward pass."""
    shard = work.spec.shard
    assert shard.max_live_parameters is not None
    assert shard.prefetch_bucket_size is not None
    assert shard.max_reuse_distance is not None
    return prefetch.live(
        work.inventory,
        _gathered_as(work),
        prefetch.Limits(
            bucket=shard.prefetch_bucket_size, live=shard.max_live_parameters, reuse=shard.max_reuse_distance
        ),
        order,
        checkpointing=work.checkpointing,
    )


def _gathered_as(work: Workload) -> prefetch.Stored:
    assert work.spec.shard.param_persistence_threshold is not None
    return prefetch.Stored(
        threshold=work.spec.shard.param_persistence_threshold,
        storage_bytes=storage_bytes(work),
        trained_bytes=work.dtypes.trained.num_bytes,
        frozen_bytes=(work.dtypes.frozen or work.dtypes.trained).num_bytes,
    )


@lru_cache(maxsize=16)
def released_bytes(work: Workload) -> int:
    """Everything that is gathered and released, whole."""
    return sum(count * _released_bytes(work, (p,)) for p, count in work.inventory.counted())


@lru_cache(maxsize=16)
def fetched_bytes(work: Workload) -> tuple[int, int]:
    """What of the embedding, and of a block, is gathered and released."""
    embedding = [p for p in work.inventory.root.parameters if p.role is Role.EMBEDDING]
    return _released_bytes(work, embedding), _released_bytes(work, work.inventory.largest_block.parameters)


def _released_bytes(work: Workload, parameters: Iterable[Held]) -> int:
    return sum(
        numel * width
        for p in parameters
        if not layout.is_persistent(work, p)
        for numel, width in [layout.stored(work, p)]
    )


def forward_terms(work: Workload, moment: Moment, order: Order = Order.STEP) -> tuple[Term, ...]:
    """Gathered parameters at a point of a forward pass, and what autograd keeps of them."""
    found = live_bytes(work, order)
    at_point = {Point.EMBEDDING: found.embedding, Point.HEAD: found.head, Point.LOSS: found.loss}
    if moment.point in at_point:
        return _gathered(work, moment, at_point[moment.point])
    num_run = fullest_block(work, moment, order)
    in_block = found.blocks.at(moment.point)[num_run - 1]
    live = _gathered(work, moment, found.norm if moment.point is Point.NORM else in_block)
    if not moment.is_trained:
        return live
    kept = kept_bytes(work) * num_run // work.inventory.num_layers
    return (*live, *_experts_kept(work, moment, but=1), *kept_terms(kept, (moment.phase,)))


def fullest_block(work: Workload, moment: Moment, order: Order = Order.STEP) -> int:
    """The block, counted from 1, with which the most is there at a point of it: while what blocks keep grows, the
    prefetcher soon has gathered all that it may, and from then on less and less is left."""
    totals = live_bytes(work, order).blocks.at(moment.point)
    if moment.point is Point.NORM:
        return len(totals)
    if moment.is_trained:
        totals = tuple(map(operator.add, totals, _kept_with_each_block(work)))
    return len(totals) - totals[::-1].index(max(totals))


@lru_cache(maxsize=64)
def _kept_with_each_block(work: Workload) -> tuple[int, ...]:
    """Bytes that are kept while each block runs: activations, and 4-bit weights."""
    num_layers = work.inventory.num_layers
    weights = kept_bytes(work) // num_layers
    return tuple(weights * number + kept_by_earlier(work, number) for number in range(1, num_layers + 1))


def live_terms(work: Workload, moment: Moment, order: Order = Order.STEP) -> tuple[Term, ...]:
    """Gathered parameters at a moment of a step. What the backward pass needs and the prefetcher has passed over is
    fetched besides. Near the end nothing is left to fetch. A loss that multiplies by the head itself has that gathered
    as well."""
    found = live_bytes(work, order)
    size_bytes = found.loss
    if moment in (HEAD_FORWARD, HEAD) or (
        moment in BEFORE_GRADIENTS and work.spec.train.loss is not Loss.CROSS_ENTROPY
    ):
        size_bytes = found.head
    elif moment.part is not None and order is not Order.STEP:
        size_bytes = _alone_in_backward(work, moment.part)
    elif moment.place is Place.LAST:
        size_bytes = found.last_block
    elif moment.place is Place.FIRST or moment is EMBEDDING:
        embedding, running = fetched_bytes(work)
        size_bytes = embedding + (running if moment.place is Place.FIRST else 0)
    return _gathered(work, moment, size_bytes)


@lru_cache(maxsize=64)
def _alone_in_backward(work: Workload, part: Part) -> int:
    """What a block has in its backward pass with nothing gathered ahead: a module's parameters; and in its MLP, with
    which that begins, all frozen ones where it is recomputed, for they are left to the module that asked for it
    (partitioned_param_coordinator.py update_recompute_parameters)."""
    block = work.inventory.largest_block
    alone = prefetch.largest_use(block, _gathered_as(work), part)
    frozen = [p for p in block.parameters if not p.state.is_trained]
    return max(alone, _released_bytes(work, frozen)) if part is Part.MLP and work.checkpointing else alone


def _gathered(work: Workload, moment: Moment, size_bytes: int) -> tuple[Term, ...]:
    return at(
        moment,
        "live parameters",
        TermKind.SHARDING_BUFFERS,
        size_bytes,
        formula=f"{size_bytes:,} of {released_bytes(work):,} B gathered",
        source=COORDINATOR,
    )


def kept_bytes(work: Workload) -> int:
    """4-bit weights that autograd keeps, of all blocks."""
    return quantisation.total_packed_bytes(work) if work.world_size > 1 else 0


def kept_terms(kept: int, phases: tuple[Phase, ...]) -> tuple[Term, ...]:
    """4-bit weights that were gathered in the forward pass: bitsandbytes' node refers to them by an attribute, which
    neither a checkpoint nor the end of the backward pass clears, and the loss keeps the nodes until the optimizer has
    stepped, for accelerate steps inside its backward()."""
    return term(
        KEPT,
        TermKind.SHARDING_BUFFERS,
        kept,
        phases,
        formula=f"{kept:,} B of packed values",
        source="bitsandbytes 0.50 autograd/_functions.py MatMul4Bit ctx.tensors; accelerate 1.15 utils/deepspeed.py",
    )


def expert_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Experts that autograd still keeps at a moment of a step."""
    if moment is EMBEDDING or moment.place is Place.FIRST:
        return ()
    return _experts_kept(work, moment)


def _experts_kept(work: Workload, moment: Moment, but: int = 0) -> tuple[Term, ...]:
    """Stacked experts that autograd has saved for their inputs' gradient, without checkpointing those of all blocks,
    but so many: releasing a parameter leaves saved views of it alone. Linear layers are DeepSpeed's own, which save
    nothing of theirs (runtime/zero/linear.py); of adapted experts the merged weights are saved instead."""
    if work.checkpointing:
        return ()
    numel = sum(
        max(block.copies - but, 0) * sum(p.numel for p in block.parameters if p.role is Role.EXPERT)
        for block in work.inventory.blocks
        if not has_adapted_experts(block)
    )
    return at(
        moment,
        "experts kept by autograd, whole",
        TermKind.SHARDING_BUFFERS,
        numel * work.matmul_bytes,
        formula=f"{numel:,} elements x {work.matmul_bytes} B",
        source="transformers 5.23 integrations/moe.py; torch 2.13 derivatives.yaml _grouped_mm",
    )
