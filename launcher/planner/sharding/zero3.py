"""ZeRO-3: every parameter split evenly by elements, gathered layer by layer, kept as long as it is soon reused.

Source: deepspeed 0.19.8 runtime/zero/stage3.py, partition_parameters.py and partitioned_param_coordinator.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from launcher.models import Role
from launcher.planner import quantisation
from launcher.planner.block import has_adapted_experts
from launcher.planner.gradients import in_flight_numel
from launcher.planner.inventory import Held, Inventory, State
from launcher.planner.moments import AFTER_HEAD, BEFORE_GRADIENTS, EMBEDDING, HEAD, HEAD_FORWARD, Moment, Place, Point
from launcher.planner.sharding import flat, partition, prefetch
from launcher.planner.sharding.loading import is_loaded_whole, whole_while_loading
from launcher.planner.sharding.rows import KINDS, TRAINED, storage_bytes
from launcher.planner.sharding.tied import waiting_numel
from launcher.planner.terms import ALWAYS, FROM_FIRST_STEP, FROM_WRAP, at, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import whole_constants
from launcher.planner.workload import Workload
from launcher.spec import Loss, Offload
from launcher.units import ceil_div

SOURCE = "deepspeed 0.19.8 runtime/zero/stage3.py"
PARTITIONS = "deepspeed 0.19.8 runtime/zero/partition_parameters.py"
KEPT = "4-bit weights kept by autograd, whole"
COORDINATOR = "deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py"
GATHERS = (Point.EMBEDDING,)


def rank_classes(work: Workload) -> tuple[tuple[range, int], ...]:
    """Each parameter's partitions are padded to equal sizes."""
    return ((range(work.world_size), 0),)


def stored(work: Workload, parameter: Held) -> tuple[int, int]:
    """Elements and bytes an element as the module holds it."""
    if parameter.state is State.QUANTISED:
        width = storage_bytes(work)
        return ceil_div(quantisation.packed_bytes(parameter.numel), width), width
    return parameter.numel, work.stored_dtype(parameter.state).num_bytes


def shard_bytes(work: Workload, state: State) -> int:
    """One rank's partitions of all parameters in a state."""
    total = 0
    for parameter, count in work.inventory.counted(state):
        numel, width = stored(work, parameter)
        total += count * ceil_div(numel, work.world_size) * width
    return total


def partition_numel(work: Workload) -> int:
    """Trained elements of one rank, padding included."""
    return sum(count * ceil_div(p.numel, work.world_size) for p, count in work.inventory.counted(*TRAINED))


def sub_group_numels(work: Workload) -> tuple[int, ...]:
    """Trained elements of one rank in each sub-group: those are stepped one at a time."""
    limit = work.spec.shard.sub_group_size
    assert limit is not None
    return _sub_groups(work.inventory, work.world_size, limit)


@lru_cache(maxsize=64)
def _sub_groups(inventory: Inventory, world_size: int, limit: int) -> tuple[int, ...]:
    """A sub-group is closed by the parameter with which it reaches the limit (_create_fp16_sub_groups); norms and
    biases are a group of their own."""
    found: list[int] = []
    filling = 0
    for numel in flat.matrices(inventory):
        filling += ceil_div(numel, world_size)
        if filling >= limit:
            found.append(filling)
            filling = 0
    no_decay = ceil_div(flat.no_decay_numel(inventory), world_size)
    return tuple(numel for numel in (*found, filling, no_decay) if numel)


def sub_group_numel(work: Workload) -> int:
    """Those of the largest."""
    return max(sub_group_numels(work), default=0)


def terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Partitions, states and buffers; what is offloaded leaves the device."""
    del rank  # all ranks are alike
    offload = work.spec.shard.offload
    found = (
        *whole_constants(work),
        *_persistent(work),
        *_kept(kept_bytes(work), (Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)),
        *_bucket(work),
        *_loading(work),
        *_initialising(work),
        *partition.held_by_graph(work),
    )
    if offload is not Offload.ALL:
        found += _shards(work)
    if offload is Offload.NONE:
        found += (*_partitions(work), *_gradients(work), *_step(work))
    return found


def own_terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Every rank holds the same."""
    del work, rank
    return ()


def after_evaluation(work: Workload) -> dict[Phase, tuple[Term, ...]]:
    """An evaluation leaves nothing."""
    del work
    return {}


def terms_at(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """Gathered parameters, and the gradient that is on its way to its partition."""
    del rank
    return (*_live_at(work, moment), *_experts_at(work, moment), *_in_flight(work, moment))


def _shards(work: Workload) -> tuple[Term, ...]:
    return tuple(
        made
        for state, kind in KINDS.items()
        for made in term(
            f"{state} weights, partition",
            kind,
            shard_bytes(work, state),
            FROM_FIRST_STEP if is_loaded_whole(work) else ALWAYS,
            formula=f"{work.inventory.numel(state):,} elements / {work.world_size} ranks, each tensor rounded up",
            source=PARTITIONS,
        )
    )


def _partitions(work: Workload) -> tuple[Term, ...]:
    """What the optimizer steps and its moments, a sub-group at a time."""
    numel = partition_numel(work)
    master = partition.master_weights(work, numel, f"{SOURCE} fp32_partitioned_groups_flat")
    return (*master, *partition.optimizer_states(work, numel, sub_group_numel(work)))


def _gradients(work: Workload) -> tuple[Term, ...]:
    """The gradient partitions live in one flat buffer for the whole run."""
    numel, width = partition_numel(work), work.gradient_bytes
    return term(
        "gradients, partition",
        TermKind.GRADIENTS,
        numel * width,
        FROM_WRAP,
        formula=f"{numel:,} elements x {width} B",
        source=f"{SOURCE} grad_partitions_flat_buffer",
    )


def _initialising(work: Workload) -> tuple[Term, ...]:
    """Zeros that initialise the optimizer, and before them a second copy of the last sub-group's master; both are gone
    when the gradient buffers come, which are counted where they stay. Later the job's checks gather one parameter that
    is trained."""
    zeros = later = 0
    if work.spec.shard.offload is Offload.NONE:
        zeros = sub_group_numel(work) * work.stepped_dtype.num_bytes
        later = partition_numel(work) * work.gradient_bytes + bucket_bytes(work)
    whole = max((numel * width for p, _ in work.inventory.counted(*TRAINED) for numel, width in [stored(work, p)]))
    return term(
        "initialising states, or one whole parameter",
        TermKind.SHARDING_BUFFERS,
        max(zeros - later, whole),
        (Phase.WRAP,),
        formula=f"the larger of {zeros:,} B of the largest sub-group, before {later:,} B of gradient buffers, and"
        f" {whole:,} B",
        source=f"{SOURCE} _create_fp32_partitions, initialize_optimizer_states; jobs/checks.py",
    )


def _step(work: Workload) -> tuple[Term, ...]:
    piece = max((ceil_div(p.numel, work.world_size) for p, _ in work.inventory.counted(*TRAINED)), default=0)
    source = f"{SOURCE} get_grad_norm_direct, _prepare_fp32_grad_for_sub_group"
    return partition.stepped_gradients(work, sub_group_numel(work), piece, source)


def is_persistent(work: Workload, parameter: Held) -> bool:
    """Small parameters stay gathered for the whole run."""
    assert work.spec.shard.param_persistence_threshold is not None
    return stored(work, parameter)[0] <= work.spec.shard.param_persistence_threshold


def _persistent(work: Workload) -> tuple[Term, ...]:
    size = sum(
        count * stored(work, p)[0] * stored(work, p)[1]
        for p, count in work.inventory.counted()
        if is_persistent(work, p)
    )
    return term(
        "persistent parameters, whole",
        TermKind.SHARDING_BUFFERS,
        size,
        FROM_FIRST_STEP,
        formula=f"all of at most {work.spec.shard.param_persistence_threshold:,} elements",
        source=f"{PARTITIONS} ds_persist",
    )


@lru_cache(maxsize=16)
def released_bytes(work: Workload) -> int:
    """Everything that is gathered and released, whole."""
    return sum(count * _released_bytes(work, (p,)) for p, count in work.inventory.counted())


def live_bytes(work: Workload) -> prefetch.Live:
    """What is gathered at a time, followed through a forward pass."""
    shard = work.spec.shard
    assert shard.max_live_parameters is not None
    assert shard.prefetch_bucket_size is not None
    return prefetch.live(
        work.inventory,
        _gathered_as(work),
        checkpointing=work.checkpointing,
        bucket=shard.prefetch_bucket_size,
        limit=shard.max_live_parameters,
    )


def _gathered_as(work: Workload) -> prefetch.Stored:
    assert work.spec.shard.param_persistence_threshold is not None
    return prefetch.Stored(
        threshold=work.spec.shard.param_persistence_threshold,
        storage_bytes=storage_bytes(work),
        trained_bytes=work.dtypes.trained.num_bytes,
        frozen_bytes=(work.dtypes.frozen or work.dtypes.trained).num_bytes,
    )


def forward_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Gathered parameters at a point of a forward pass, and what autograd keeps of them."""
    found = live_bytes(work)
    at_point = {Point.EMBEDDING: found.embedding, Point.HEAD: found.head, Point.LOSS: found.loss}
    if moment.point in at_point:
        return _gathered(work, moment, at_point[moment.point])
    if not moment.is_trained:
        return _gathered(work, moment, max(found.blocks))
    live, kept = _highest_block(work, found.blocks)
    return (*_gathered(work, moment, live), *_experts_kept(work, moment, but=1), *_kept(kept, (moment.phase,)))


def _highest_block(work: Workload, blocks: tuple[int, ...]) -> tuple[int, int]:
    """What is gathered in the block with which the most is there, and the 4-bit weights kept by then: while these grow
    from block to block, the prefetcher soon has gathered all that it may."""
    whole = kept_bytes(work)
    at_block = ((live, whole * number // len(blocks)) for number, live in enumerate(blocks, start=1))
    return max(at_block, key=sum)


def kept_bytes(work: Workload) -> int:
    """4-bit weights that autograd keeps, of all blocks."""
    return quantisation.total_packed_bytes(work) if work.world_size > 1 else 0


def _kept(kept: int, phases: tuple[Phase, ...]) -> tuple[Term, ...]:
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


def _live_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Those of one moment. What the backward pass needs and the prefetcher has passed over is fetched besides. Near the
    end nothing is left to fetch. A loss that multiplies by the head itself has that gathered as well."""
    found = live_bytes(work)
    size_bytes = found.loss
    if moment in (HEAD_FORWARD, HEAD) or (
        moment in BEFORE_GRADIENTS and work.spec.train.loss is not Loss.CROSS_ENTROPY
    ):
        size_bytes = found.head
    elif moment.place is Place.LAST:
        size_bytes = found.last_block
    elif moment.place is Place.FIRST or moment is EMBEDDING:
        embedding, running = fetched_bytes(work)
        size_bytes = embedding + (running if moment.place is Place.FIRST else 0)
    return _gathered(work, moment, size_bytes)


@lru_cache(maxsize=16)
def fetched_bytes(work: Workload) -> tuple[int, int]:
    """Those of the embedding and of a block that are gathered and released."""
    embedding = [p for p in work.inventory.root.parameters if p.role is Role.EMBEDDING]
    return _released_bytes(work, embedding), _released_bytes(work, work.inventory.largest_block.parameters)


def _experts_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
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


def _released_bytes(work: Workload, parameters: Iterable[Held]) -> int:
    return sum(numel * width for p in parameters if not is_persistent(work, p) for numel, width in [stored(work, p)])


def _gathered(work: Workload, moment: Moment, size_bytes: int) -> tuple[Term, ...]:
    return at(
        moment,
        "live parameters",
        TermKind.SHARDING_BUFFERS,
        size_bytes,
        formula=f"{size_bytes:,} of {released_bytes(work):,} B gathered",
        source=COORDINATOR,
    )


def bucket_bytes(work: Workload) -> int:
    """The gradient bucket, held for the whole run."""
    assert work.spec.shard.reduce_bucket_size is not None
    return work.spec.shard.reduce_bucket_size * work.gradient_bytes


def _bucket(work: Workload) -> tuple[Term, ...]:
    return term(
        "gradient bucket",
        TermKind.SHARDING_BUFFERS,
        bucket_bytes(work),
        FROM_WRAP,
        formula=f"{work.spec.shard.reduce_bucket_size:,} elements x {work.gradient_bytes} B",
        source=f"{SOURCE} ipg_buckets",
    )


@lru_cache(maxsize=16)
def copied_numel(work: Workload) -> int:
    """Elements of a full bucket, whose tensors are rearranged by rank before they are reduced; a tensor larger than
    the bucket is reduced alone, and copied only where it does not divide by the ranks."""
    if work.world_size == 1:
        return 0
    assert work.spec.shard.reduce_bucket_size is not None
    trained = [p.numel for p, _ in work.inventory.counted(*TRAINED)]
    uneven = max((numel for numel in trained if numel % work.world_size), default=0)
    return max(min(work.spec.shard.reduce_bucket_size, work.inventory.trained_numel), uneven)


def _in_flight(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The gradient just computed, beside one too large for the bucket that waits for it there, and a bucket's
    rearranged copy. A tied head's gradient waits for the embedding's."""
    if moment in BEFORE_GRADIENTS:
        return ()
    width, bucket = work.gradient_bytes, work.spec.shard.reduce_bucket_size or 0
    waiting = waiting_numel(work.inventory, moment) if moment is not HEAD else 0
    numel = in_flight_numel(work.inventory, moment)
    twice = numel if numel > bucket and moment not in (HEAD, AFTER_HEAD, EMBEDDING) else 0
    copied = 0 if moment is HEAD else copied_numel(work)
    return (
        *at(
            moment,
            "gradient in flight",
            TermKind.GRADIENTS,
            (numel + twice + waiting) * width,
            formula=f"({numel:,} + {twice:,} waiting in the bucket + {waiting:,} of a tied head) x {width} B",
            source=f"{SOURCE} __add_grad_to_ipg_bucket",
        ),
        *at(
            moment,
            "reduce-scatter copy",
            TermKind.SHARDING_BUFFERS,
            copied * width,
            formula=f"{copied:,} elements x {width} B",
            source="deepspeed 0.19.8 runtime/comm/coalesced_collectives.py reduce_scatter_coalesced",
        ),
    )


def _loading(work: Workload) -> tuple[Term, ...]:
    """Loading partitions one whole parameter at a time, and saving gathers one. A quantised model is loaded whole, and
    its parameters are partitioned one by one as it is wrapped."""
    numel, width = max((stored(work, p) for p, _ in work.inventory.counted()), key=lambda held: held[0] * held[1])
    partition_bytes = ceil_div(numel, work.world_size) * width if is_loaded_whole(work) else 0
    return (
        *term(
            "one whole parameter",
            TermKind.SHARDING_BUFFERS,
            numel * width,
            (Phase.SAVE,) if is_loaded_whole(work) else (Phase.LOAD, Phase.SAVE),
            formula=f"{numel:,} elements x {width} B",
            source=f"{PARTITIONS} Init; deepspeed 0.19.8 runtime/engine.py _zero3_consolidated_16bit_state_dict",
        ),
        *term(
            "one parameter's partition",
            TermKind.SHARDING_BUFFERS,
            partition_bytes,
            (Phase.WRAP,),
            formula=f"{numel:,} elements x {width} B / {work.world_size} ranks",
            source=f"{PARTITIONS} Init",
        ),
        *whole_while_loading(work),
    )
