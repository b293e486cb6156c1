"""FSDP2: each parameter split over the ranks along its first dimension, gathered group by group.

Source: torch 2.13 distributed/fsdp/_fully_shard/: _fsdp_param.py (shards are padded to equal rows),
_fsdp_collectives.py (the flat all-gather output beside the copies made from it; reduce-scatter in reduce_dtype),
_fsdp_param_group.py (prefetch of one group, one reduce-scatter input in flight).

The groups are accelerate 1.15's (utils/fsdp_utils.py fsdp2_prepare_model): each transformer block; the embedding; and
the tail, which is final norm and head, and is not resharded between forward and backward. A tied embedding belongs to
the tail, whose gradients then wait for the end of the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from launcher.models import Role
from launcher.planner import optimizer
from launcher.planner.foreach import foreach_term
from launcher.planner.gradients import (
    copies_made,
    gradient_terms,
    gradients_so_far,
    is_of_embedding,
    made_in_root,
    running_parts,
)
from launcher.planner.inventory import Block
from launcher.planner.moments import (
    AFTER_HEAD,
    BEFORE_GRADIENTS,
    EMBEDDING,
    HEAD,
    HEAD_FORWARD,
    LOSS,
    LOSS_BACKWARD,
    Moment,
    Place,
    Point,
)
from launcher.planner.sharding import alike, rows
from launcher.planner.sharding.fsdp_loading import loading_terms
from launcher.planner.sharding.tied import waiting_numel
from launcher.planner.terms import ALWAYS, FROM_FIRST_STEP, FROM_WRAP, at, term
from launcher.planner.types import Term, TermKind
from launcher.planner.weights import whole_constants
from launcher.planner.workload import Workload
from launcher.spec import MethodKind, Offload

GATHERED = "parameters, gathered"
SOURCE = "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py"
COLLECTIVES = "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_collectives.py"
GROUPS = "accelerate 1.15 utils/fsdp_utils.py fsdp2_prepare_model"
GATHERS = (Point.EMBEDDING, Point.FIRST_GATHER, Point.NEXT_GATHER, Point.NORM_GATHER, Point.HEAD_GATHER)
first_steps = alike.first_steps
fullest_block = alike.fullest_block


def rank_classes(work: Workload) -> tuple[tuple[range, int], ...]:
    """Ranks by how many trained rows they really have."""
    return rows.rank_classes(work)


def terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Shards and gradients (on the host when offloaded), and what loading and saving need: padded, and so the same on
    every rank."""
    del rank
    buffers = (*whole_constants(work), *loading_terms(work))
    if work.spec.shard.offload is Offload.ALL:
        return buffers
    return (*_shards(work), *_gradients(work), *buffers)


def own_terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Optimizer states of the rows that a rank really has; on the host when offloaded."""
    return () if work.spec.shard.offload is Offload.ALL else _optimizer_states(work, rank)


def terms_at(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """What is gathered and reduced at one moment, and the sharded gradients so far."""
    del rank
    so_far = () if work.spec.shard.offload is Offload.ALL else _so_far(work, moment)
    return (*_gathered_at(work, moment), *_reduced(work, moment), *so_far)


def _shards(work: Workload) -> tuple[Term, ...]:
    return tuple(
        made
        for state, kind in rows.KINDS.items()
        for made in term(
            f"{state} weights, shard",
            kind,
            rows.shard_bytes(work, state),
            FROM_WRAP if work.on_cuda else ALWAYS,
            formula=f"{work.inventory.numel(state):,} elements / {work.world_size} ranks, rows rounded up",
            source=SOURCE,
        )
    )


def sharded_gradient_bytes(work: Workload) -> int:
    """All sharded gradients of one rank: views into padded reduce-scatter outputs, in the parameters' dtype."""
    return sum(
        count * rows.padded_numel(p.shape, work.world_size) * work.gradient_bytes
        for p, count in work.inventory.counted(*rows.TRAINED)
    )


def gradients_so_far_bytes(work: Workload, moment: Moment) -> int:
    """Those of the groups that are reduced: neither the running block, nor what waits for the end."""
    inventory, waiting = work.inventory, last_group(work).parameters
    root = [p for p in made_in_root(inventory, moment) if p not in waiting or moment is EMBEDDING]
    reduced = sum(rows.padded_numel(p.shape, work.world_size) for p in root) if moment is not HEAD else 0
    for block in inventory.blocks:
        copies = copies_made(inventory, block, moment)
        if copies:
            reduced += copies * sum(rows.padded_numel(p.shape, work.world_size) for p in block.trained)
    return reduced * work.gradient_bytes


def _gradients(work: Workload) -> tuple[Term, ...]:
    """Accumulated ones are sharded as well: the job reduces after every micro batch (sync_each_batch)."""
    return gradient_terms(
        work,
        whole_bytes=sharded_gradient_bytes(work),
        formula=f"{work.inventory.trained_numel:,} elements x {work.gradient_bytes} B / {work.world_size} ranks",
        source=COLLECTIVES,
    )


def _so_far(work: Workload, moment: Moment) -> tuple[Term, ...]:
    return gradients_so_far(work, moment, made_bytes=gradients_so_far_bytes(work, moment), source=COLLECTIVES)


def _optimizer_states(work: Workload, rank: int) -> tuple[Term, ...]:
    tensors = rows.local_tensors(work, rank)
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


@lru_cache(maxsize=16)
def tail(work: Workload) -> Block:
    """Final norm and head, and the embedding where it is tied."""
    root, is_tied = work.inventory.root.parameters, work.inventory.is_tied
    has_norm = _has_norm_in_tail(work)
    parameters = (p for p in root if (is_tied or not is_of_embedding(p)) and (has_norm or p.role is not Role.NORM))
    return Block(copies=1, parameters=tuple(parameters))


def _has_norm_in_tail(work: Workload) -> bool:
    """accelerate looks for the final norm among the base model's children (_find_final_norm), and peft's wrapper has
    none: an adapted model's is left to the root."""
    return work.spec.method.kind is MethodKind.FULL


@lru_cache(maxsize=16)
def last_group(work: Workload) -> Block:
    """What is reduced last: the embedding, or the tail that it belongs to."""
    if work.inventory.is_tied:
        return tail(work)
    return Block(copies=1, parameters=tuple(p for p in work.inventory.root.parameters if is_of_embedding(p)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Bytes of the groups while they are gathered. embedding is 0 where it belongs to the tail; flat_factor is 1, or 0
    on a single rank, which gathers nothing into a flat buffer first."""

    embedding: int
    tail: int
    block: int
    every_block: int
    flat_factor: int


@lru_cache(maxsize=16)
def groups(work: Workload) -> Groups:
    """The groups of a job."""
    blocks = [(rows.gathered_bytes(work, block), block.copies) for block in work.inventory.blocks]
    return Groups(
        embedding=0 if work.inventory.is_tied else rows.gathered_bytes(work, last_group(work)),
        tail=rows.gathered_bytes(work, tail(work)),
        block=max(size for size, _ in blocks),
        every_block=sum(size * copies for size, copies in blocks),
        flat_factor=0 if work.world_size == 1 else 1,
    )


def forward_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Copies in use, and flat buffers. The one that the last copies were made from is kept for the overlap with the
    next group: it is there until the next copies are made, so that a gather has three of a group's size."""
    assert moment.point is not None
    if moment.point is (Point.HEAD_GATHER if _has_norm_in_tail(work) else Point.NORM_GATHER):
        return ()
    found = groups(work)
    copies, flat = _in_forward(found, moment.point, is_tied=work.inventory.is_tied)
    if moment.point is Point.NORM and not _has_norm_in_tail(work):
        copies, flat = found.tail if work.inventory.is_tied else 0, found.block
    if not work.spec.shard.reshard_after_forward:
        copies += _kept_whole(found, moment.point)
    return at(
        moment,
        GATHERED,
        TermKind.SHARDING_BUFFERS,
        copies + flat * found.flat_factor,
        formula=f"{copies:,} B in use + {flat:,} B in flat buffers",
        source=f"{GROUPS}; {COLLECTIVES}",
    )


def after_evaluation(work: Workload, moment: Moment) -> tuple[Term, ...] | None:
    """The tail is resharded by the backward pass alone, so that a step after an evaluation begins with its copies. As
    nothing is gathered for norm and head then, the last block's flat buffer stays instead of the tail's. In that
    backward pass the group that ran before the embedding is the evaluation's tail, and gathered ahead once more
    (_fsdp_param_group.py _backward_prefetch, post_forward_order). A tied tail is there from the embedding on anyway.
    """
    found = groups(work)
    if work.inventory.is_tied or not moment.is_trained or not work.spec.shard.reshard_after_forward:
        return None
    if moment in (HEAD_FORWARD, LOSS) or moment.point in (Point.NORM_GATHER, Point.NORM, Point.HEAD_GATHER):
        copies, flat = found.tail, found.block
    elif moment.point is not None:
        copies, flat = _in_forward(found, moment.point, is_tied=False)
        copies += found.tail
    elif moment is EMBEDDING:
        copies, flat = 0 if _reduces_alone(work) else found.embedding, found.tail
    else:
        return None
    return at(
        moment,
        GATHERED,
        TermKind.SHARDING_BUFFERS,
        copies + flat * found.flat_factor,
        formula=f"{copies:,} B in use + {flat:,} B in flat buffers, after an evaluation",
        source=f"{GROUPS}; torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py wait_for_unshard",
    )


def _in_forward(found: Groups, point: Point, *, is_tied: bool) -> tuple[int, int]:
    """Bytes of copies and of flat buffers. A tied embedding is in the tail, whose copies stay for the whole pass."""
    first, stays = (found.tail, found.tail) if is_tied else (found.embedding, 0)
    match point:
        case Point.EMBEDDING:
            return first, first
        case Point.FIRST_GATHER:
            return stays + found.block, first + found.block
        case Point.NEXT_GATHER:
            return stays + found.block, 2 * found.block
        case Point.BLOCK | Point.QUANTISED:
            return stays + found.block, found.block
        case Point.NORM_GATHER | Point.HEAD_GATHER if not is_tied:
            return found.tail, found.block + found.tail
        case _:
            return found.tail, found.block if is_tied else found.tail


def _kept_whole(found: Groups, point: Point) -> int:
    """Copies of the groups before, where none is resharded after its forward pass."""
    match point:
        case Point.EMBEDDING:
            return 0
        case Point.FIRST_GATHER:
            return found.embedding
        case Point.NEXT_GATHER | Point.BLOCK | Point.QUANTISED:
            return found.embedding + found.every_block - found.block
        case _:
            return found.embedding + found.every_block


def _gathered_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Copies in use, and the flat buffer of the group that is gathered ahead or was gathered last.

    The tail's flat buffer is there until the forward pass returns; the backward pass of each group begins with
    gathering the next one; that of the embedding is fetched whether it is trained or not.
    """
    found = groups(work)
    tied = work.inventory.is_tied
    copies = found.tail if tied or moment in (*BEFORE_GRADIENTS, HEAD) else 0
    ahead = found.block
    if moment in (HEAD_FORWARD, LOSS):
        ahead = found.block if tied else found.tail
    elif moment is LOSS_BACKWARD:
        ahead = 0
    elif moment.place is Place.FIRST:
        ahead = found.embedding
    elif moment is EMBEDDING:
        copies += 0 if tied or _reduces_alone(work) else found.embedding
        ahead = 0
    if not work.spec.shard.reshard_after_forward:
        ahead = found.tail if moment in (HEAD_FORWARD, LOSS) and not tied else 0
        copies += found.embedding if moment is not EMBEDDING else 0
        running = {Place.FIRST: found.block, None: 0 if moment is EMBEDDING else found.every_block}
        copies += running.get(moment.place, found.every_block)
    elif moment.place is not None:
        copies += found.block
    return at(
        moment,
        GATHERED,
        TermKind.SHARDING_BUFFERS,
        copies + ahead * found.flat_factor,
        formula=f"{copies:,} B in use + {ahead:,} B in a flat buffer",
        source=f"{GROUPS}; {COLLECTIVES}",
    )


def _reduces_alone(work: Workload) -> bool:
    """Whether the embedding's reduce-scatter, for which its copies are gone, needs more than its gradient beside those
    copies and the last block's reduce-scatter."""
    embedding = last_group(work)
    block = rows.largest_reduced_numel(work)
    width = rows.reduce_bytes(work)
    return rows.reduced_numel(work, embedding) * width > rows.gathered_bytes(work, embedding) + block * width


def _reduced(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Unsharded gradients, and the reduce-scatter input that was made last; its output are the sharded gradients. It
    is kept until the next group's is made."""
    inventory = work.inventory
    if moment in BEFORE_GRADIENTS:
        return ()
    waiting = waiting_numel(inventory, moment) if moment not in (HEAD, AFTER_HEAD) else 0
    made = sum(p.numel for p in running_parts(inventory, moment))
    if moment in (HEAD, AFTER_HEAD):
        made = sum(p.numel for p in made_in_root(inventory, moment))
    elif moment is EMBEDDING:
        made = last_group(work).trained_numel
    at_tail = 0 if inventory.is_tied else rows.reduced_numel(work, tail(work))
    block = rows.largest_reduced_numel(work)
    scattered = block
    if moment is HEAD:
        scattered = 0
    elif moment is AFTER_HEAD or moment.place is Place.LAST:
        scattered = at_tail
    elif moment is EMBEDDING and not inventory.is_tied and _reduces_alone(work):
        scattered = rows.reduced_numel(work, last_group(work))
    unsharded, width = waiting + made, rows.reduce_bytes(work)
    return (
        *at(
            moment,
            "gradients, unsharded",
            TermKind.SHARDING_BUFFERS,
            unsharded * work.compute_bytes,
            formula=f"{unsharded:,} elements x {work.compute_bytes} B",
            source=COLLECTIVES,
        ),
        *at(
            moment,
            "reduce-scatter input",
            TermKind.SHARDING_BUFFERS,
            scattered * width,
            formula=f"{scattered:,} elements x {width} B",
            source=COLLECTIVES,
        ),
    )
