"""ZeRO-3: every parameter split evenly by elements, gathered layer by layer.

Source: deepspeed 0.19.8 runtime/zero/stage3.py; zero3_layout has the partitions, zero3_gathered what is
whole in a step, zero3_loading what is before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from launcher.planner.gradients import in_flight_numel
from launcher.planner.moments import AFTER_HEAD, BEFORE_GRADIENTS, EMBEDDING, HEAD, Moment, Point
from launcher.planner.sharding import alike, partition
from launcher.planner.sharding import zero3_gathered as gathered
from launcher.planner.sharding import zero3_layout as layout
from launcher.planner.sharding import zero3_loading as loading
from launcher.planner.sharding.prefetch import Order
from launcher.planner.sharding.rows import KINDS, TRAINED
from launcher.planner.sharding.tied import waiting_numel
from launcher.planner.sharding.zero3_layout import PARTITIONS
from launcher.planner.terms import ALWAYS, FROM_WRAP, at, peak_bytes, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import whole_constants
from launcher.planner.workload import Workload
from launcher.spec import Offload
from launcher.units import ceil_div

SOURCE = "deepspeed 0.19.8 runtime/zero/stage3.py"
GATHERS = (Point.EMBEDDING, Point.ATTENTION, Point.DOWN)
after_evaluation = alike.after_evaluation
forward_terms = gathered.forward_terms
fullest_block = gathered.fullest_block


def rank_classes(work: Workload) -> tuple[tuple[range, int], ...]:
    """Each parameter's partitions are padded to equal sizes."""
    return ((range(work.world_size), 0),)


def terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Partitions, states and buffers; what is offloaded leaves the device."""
    del rank  # all ranks are alike
    offload = work.spec.shard.offload
    engine = (
        *whole_constants(work),
        *gathered.persistent_terms(work),
        *gathered.kept_terms(gathered.kept_bytes(work), (Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)),
        *_bucket(work),
        *_initialising(work),
        *partition.held_by_graph(work),
    )
    if offload is not Offload.ALL:
        engine += _shards(work)
    if offload is Offload.NONE:
        engine += (*_partitions(work), *_gradients(work), *_step(work))
    return (*engine, *loading.loading_terms(work), *loading.converting(work, peak_bytes(engine, Phase.WRAP)))


def own_terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Every rank holds the same."""
    del work, rank
    return ()


def terms_at(work: Workload, rank: int, moment: Moment, order: Order = Order.STEP) -> tuple[Term, ...]:
    """Gathered parameters, and the gradient that is on its way to its partition."""
    del rank
    return (*gathered.live_terms(work, moment, order), *gathered.expert_terms(work, moment), *_in_flight(work, moment))


@dataclass(frozen=True, slots=True)
class Early:
    """A step in which no whole step's order is known."""

    order: Order
    has_states: bool
    GATHERS: ClassVar[tuple[Point, ...]] = GATHERS

    def fullest_block(self, work: Workload, moment: Moment) -> int:
        return fullest_block(work, moment, self.order)

    def forward_terms(self, work: Workload, moment: Moment) -> tuple[Term, ...]:
        return forward_terms(work, moment, self.order)

    def terms_at(self, work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
        return terms_at(work, rank, moment, self.order)


def first_steps(work: Workload) -> tuple[Early, ...]:
    """The first step's forward pass goes by the order of the evaluation before it, which its backward pass finds to be
    wrong (deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py trace_prologue); the next pass is recorded
    (reset_step), which is the second step's, or with accumulation the first's second; then all are alike."""
    if work.accumulates:
        return (Early(Order.STEP, has_states=True),)
    return (Early(Order.EVALUATION, has_states=False), Early(Order.NONE, has_states=True))


def _shards(work: Workload) -> tuple[Term, ...]:
    return tuple(
        made
        for state, kind in KINDS.items()
        for made in term(
            f"{state} weights, partition",
            kind,
            layout.shard_bytes(work, state),
            FROM_WRAP if state in loading.states_loaded_whole(work) else ALWAYS,
            formula=f"{work.inventory.numel(state):,} elements / {work.world_size} ranks, each tensor rounded up",
            source=PARTITIONS,
        )
    )


def _partitions(work: Workload) -> tuple[Term, ...]:
    """What the optimizer steps and its moments, a sub-group at a time."""
    numel = layout.partition_numel(work)
    master = partition.master_weights(work, numel, f"{SOURCE} fp32_partitioned_groups_flat")
    return (*master, *partition.optimizer_states(work, numel, layout.sub_group_numel(work)))


def _gradients(work: Workload) -> tuple[Term, ...]:
    """The gradient partitions live in one flat buffer for the whole run."""
    numel, width = layout.partition_numel(work), work.gradient_bytes
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
        zeros = layout.sub_group_numel(work) * work.stepped_dtype.num_bytes
        later = layout.partition_numel(work) * work.gradient_bytes + bucket_bytes(work)
    whole = max(loading.gathered_bytes(work, p) for p, _ in work.inventory.counted(*TRAINED))
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
    return partition.stepped_gradients(work, layout.sub_group_numel(work), piece, source)


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
