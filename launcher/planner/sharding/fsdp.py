"""FSDP2: each parameter split over the ranks along its first dimension, gathered group by group.

Source: torch 2.13 distributed/fsdp/_fully_shard/: _fsdp_param.py (shards are padded to equal rows),
_fsdp_collectives.py (the flat all-gather output beside the copies made from it; reduce-scatter in reduce_dtype),
_fsdp_param_group.py (prefetch of one group, one reduce-scatter input in flight).

The groups are accelerate 1.15's (utils/fsdp_utils.py fsdp2_prepare_model): each transformer block; the embedding; and
the tail, which is final norm and head, and is not resharded between forward and backward. A tied embedding belongs to
the tail, whose gradients then wait for the end of the backward pass.

Optimizer states follow a rank's real rows, so that the last ranks can hold less.
"""

from __future__ import annotations

from launcher.models import Role
from launcher.planner import optimizer, quantisation
from launcher.planner.foreach import foreach_term
from launcher.planner.gradients import Moment, gradient_terms, with_gradients
from launcher.planner.inventory import Block, Held, State
from launcher.planner.terms import ALWAYS, FROM_FIRST_STEP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import constants_formula
from launcher.planner.workload import Workload
from launcher.spec import Dtype, Offload
from launcher.units import ceil_div

SOURCE = "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py"
COLLECTIVES = "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_collectives.py"
GROUPS = "accelerate 1.15 utils/fsdp_utils.py fsdp2_prepare_model"
TRAINED = (State.TRAINED, State.ADAPTER)
KINDS = {
    State.TRAINED: TermKind.WEIGHTS,
    State.FROZEN: TermKind.WEIGHTS,
    State.QUANTISED: TermKind.WEIGHTS,
    State.ADAPTER: TermKind.ADAPTERS,
}


def rank_classes(work: Workload) -> tuple[tuple[int, ...], ...]:
    """Ranks by how many trained elements they really have."""
    classes: dict[int, list[int]] = {}
    for rank in range(work.world_size):
        classes.setdefault(sum(n * count for n, count in local_tensors(work, rank)), []).append(rank)
    return tuple(tuple(ranks) for ranks in classes.values())


def local_tensors(work: Workload, rank: int) -> tuple[tuple[int, int], ...]:
    """Trained elements of one rank, tensor by tensor, with how often such a tensor occurs."""
    return tuple((local_numel(p.shape, work.world_size, rank), count) for p, count in work.inventory.counted(*TRAINED))


def local_numel(shape: tuple[int, ...], world_size: int, rank: int) -> int:
    """Elements of one rank: torch.chunk along the first dimension, so that the last chunks may be short or empty."""
    rows_per_rank = ceil_div(shape[0], world_size)
    rows = min(max(shape[0] - rank * rows_per_rank, 0), rows_per_rank)
    return rows * _row_numel(shape)


def padded_numel(shape: tuple[int, ...], world_size: int) -> int:
    """Elements of one rank's shard as stored: every rank has as many rows as the first."""
    return ceil_div(shape[0], world_size) * _row_numel(shape)


def _row_numel(shape: tuple[int, ...]) -> int:
    numel = 1
    for size in shape[1:]:
        numel *= size
    return numel


def stored(work: Workload, parameter: Held) -> tuple[tuple[int, ...], int]:
    """Shape and bytes an element as the module holds it: a 4-bit weight is one column of its storage dtype."""
    if parameter.state is State.QUANTISED:
        width = storage_bytes(work)
        return (ceil_div(quantisation.packed_bytes(parameter.numel), width),), width
    return parameter.shape, work.stored_dtype(parameter.state).num_bytes


def storage_bytes(work: Workload) -> int:
    """Bytes of the dtype in which 4-bit values are packed."""
    return (work.spec.method.storage_dtype or Dtype.UINT8).num_bytes


def shard_bytes(work: Workload, state: State) -> int:
    """One rank's padded shards of all parameters in a state."""
    total = 0
    for parameter, count in work.inventory.counted(state):
        shape, width = stored(work, parameter)
        total += count * padded_numel(shape, work.world_size) * width
    return total


def gathered_bytes(work: Workload, block: Block) -> int:
    """One block gathered for use, in the dtype it is used in, padding included."""
    total = 0
    for parameter in block.parameters:
        shape, width = stored(work, parameter)
        if parameter.state is not State.QUANTISED:
            width = work.gathered_bytes(parameter.state)
        total += padded_numel(shape, work.world_size) * work.world_size * width
    return total


def reduced_numel(work: Workload, block: Block) -> int:
    """Trained elements of one block as reduce-scatter takes them, padding included."""
    return sum(padded_numel(p.shape, work.world_size) * work.world_size for p in block.parameters if p.state in TRAINED)


def reduce_bytes(work: Workload) -> int:
    """Bytes of the reduce dtype: fp32 in mixed precision, else that of the gradients."""
    return Dtype.FLOAT32.num_bytes if work.is_mixed else work.compute_bytes


def terms(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """Shards, gradients and optimizer states of one rank (on the host when offloaded), and the gather buffers."""
    buffers = (*_constants(work), *_gathered(work, moment), *_reduced(work, moment), *_one_parameter(work))
    if work.spec.shard.offload is Offload.ALL:
        return buffers
    return (*_shards(work), *_gradients(work, moment), *_optimizer_states(work, rank), *buffers)


def _shards(work: Workload) -> tuple[Term, ...]:
    return tuple(
        made
        for state, kind in KINDS.items()
        for made in term(
            f"{state} weights, shard",
            kind,
            shard_bytes(work, state),
            ALWAYS,
            formula=f"{work.inventory.numel(state):,} elements / {work.world_size} ranks, rows rounded up",
            source=SOURCE,
        )
    )


def _constants(work: Workload) -> tuple[Term, ...]:
    """Quantisation constants are no parameters: every rank keeps all of them."""
    return term(
        "quantisation constants, whole",
        TermKind.WEIGHTS,
        quantisation.total_constants_bytes(work),
        ALWAYS,
        formula=constants_formula(double_quant=bool(work.spec.method.double_quant)),
        source="bitsandbytes 0.50 nn/modules.py Params4bit.quant_state",
    )


def sharded_gradient_bytes(work: Workload) -> int:
    """All sharded gradients of one rank: views into padded reduce-scatter outputs, in the parameters' dtype."""
    return sum(
        count * padded_numel(p.shape, work.world_size) * work.gradient_bytes
        for p, count in work.inventory.counted(*TRAINED)
    )


def gradients_so_far_bytes(work: Workload, moment: Moment) -> int:
    """Those of the groups that are reduced; what waits for the end of the backward pass is not."""
    copies = with_gradients(work.inventory, moment)
    waiting = last_group(work).parameters
    return sum(
        padded_numel(p.shape, work.world_size) * work.gradient_bytes * copies(p, block)
        for block in work.inventory.groups
        for p in block.parameters
        if p.state.is_trained and p not in waiting
    )


def _gradients(work: Workload, moment: Moment) -> tuple[Term, ...]:
    return gradient_terms(
        whole_bytes=sharded_gradient_bytes(work),
        so_far_bytes=gradients_so_far_bytes(work, moment),
        accumulates=work.accumulates,
        formula=f"{work.inventory.trained_numel:,} elements x {work.gradient_bytes} B / {work.world_size} ranks",
        source=COLLECTIVES,
    )


def _optimizer_states(work: Workload, rank: int) -> tuple[Term, ...]:
    tensors = local_tensors(work, rank)
    kind = work.spec.train.optimizer
    local = sum(numel * count for numel, count in tensors)
    return term(
        "optimizer states, shard",
        TermKind.OPTIMIZER_STATES,
        optimizer.states_bytes(kind, tensors, work.dtypes.optimizer_states),
        FROM_FIRST_STEP,
        formula=f"2 moments x {local:,} elements ({kind})",
        source=optimizer.SOURCES[kind],
    ) + foreach_term(work, local)


def is_tied(work: Workload) -> bool:
    """Whether the head is the embedding."""
    return not any(p.role is Role.HEAD for p in work.inventory.root.parameters)


def tail(work: Workload) -> Block:
    """Final norm and head, and the embedding where it is tied."""
    root = work.inventory.root.parameters
    return Block(copies=1, parameters=tuple(p for p in root if is_tied(work) or not _is_of_embedding(p)))


def last_group(work: Workload) -> Block:
    """What is reduced last: the embedding, or the tail that it belongs to."""
    if is_tied(work):
        return tail(work)
    return Block(copies=1, parameters=tuple(p for p in work.inventory.root.parameters if _is_of_embedding(p)))


def _is_of_embedding(parameter: Held) -> bool:
    return parameter.role is Role.EMBEDDING or "lora_embedding" in parameter.name


def _gathered(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The tail's copies stay through the loss, until it is reduced; the embedding's are there while it is used. Of
    the blocks there are one copied out and one in flight, or all of them when they are not resharded."""
    at_end = gathered_bytes(work, tail(work))
    embedding = 0 if is_tied(work) else gathered_bytes(work, last_group(work))
    block = max(gathered_bytes(work, block) for block in work.inventory.blocks)
    every_block = sum(gathered_bytes(work, block) * block.copies for block in work.inventory.blocks)
    reshards = bool(work.spec.shard.reshard_after_forward)
    in_blocks = () if moment is Moment.AFTER_BLOCKS else (Phase.BACKWARD,)
    buffers = TermKind.SHARDING_BUFFERS
    return (
        *term(
            "tail, gathered",
            buffers,
            at_end,
            (Phase.FORWARD, Phase.LOSS, Phase.EVALUATION, *(in_blocks if is_tied(work) else ())),
            formula=f"{tail(work).numel():,} elements in the compute dtype",
            source=GROUPS,
        ),
        *term(
            "embedding, gathered",
            buffers,
            0 if reshards else embedding,
            (Phase.FORWARD, Phase.LOSS, Phase.EVALUATION, *in_blocks),
            formula="reshard_after_forward=false",
            source=GROUPS,
        ),
        *term(
            "blocks, gathered and in flight",
            buffers,
            2 * block if reshards else 0,
            (Phase.FORWARD, Phase.EVALUATION, *in_blocks),
            formula=f"2 x {block:,} B: one copied out, one in flight",
            source=COLLECTIVES,
        ),
        *term(
            "all blocks, gathered",
            buffers,
            0 if reshards else every_block,
            (Phase.FORWARD, Phase.LOSS, Phase.EVALUATION, *in_blocks),
            formula="reshard_after_forward=false",
            source=COLLECTIVES,
        ),
    )


def _reduced(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Unsharded gradients and the reduce-scatter's input made from them; its output are the sharded gradients. The
    input of the group before is in flight while the next group computes."""
    block = max(reduced_numel(work, block) for block in work.inventory.blocks)
    last = reduced_numel(work, last_group(work))
    waiting = last if is_tied(work) or moment is Moment.AFTER_BLOCKS else 0
    running = 0 if moment is Moment.AFTER_BLOCKS else block
    in_flight = {
        Moment.LAST_BLOCK: max(block, 0 if is_tied(work) else reduced_numel(work, tail(work))),
        Moment.FIRST_BLOCK: block,
        Moment.AFTER_BLOCKS: last,
    }[moment]
    unsharded, width = waiting + running, reduce_bytes(work)
    buffers, phases = TermKind.SHARDING_BUFFERS, (Phase.BACKWARD,)
    return (
        *term(
            "gradients, unsharded",
            buffers,
            unsharded * work.compute_bytes,
            phases,
            formula=f"{unsharded:,} elements x {work.compute_bytes} B",
            source=COLLECTIVES,
        ),
        *term(
            "reduce-scatter input",
            buffers,
            in_flight * width,
            phases,
            formula=f"{in_flight:,} elements x {width} B",
            source=COLLECTIVES,
        ),
    )


def _one_parameter(work: Workload) -> tuple[Term, ...]:
    """Loading and saving pass one whole parameter through the device at a time."""
    largest = max(p.numel * stored(work, p)[1] for p, _ in work.inventory.counted() if p.state is not State.QUANTISED)
    return term(
        "one whole parameter",
        TermKind.SHARDING_BUFFERS,
        largest,
        (Phase.LOAD, Phase.SAVE),
        formula="the largest",
        source="accelerate 1.15 utils/fsdp_utils.py; torch 2.13 distributed/checkpoint/state_dict.py",
    )
