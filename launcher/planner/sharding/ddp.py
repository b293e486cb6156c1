"""DDP: everything on every rank, and flat buckets to reduce gradients in. On one rank there is no wrapper.

Source: torch 2.13 nn/parallel/distributed.py and csrc/distributed/c10d/reducer.cpp. The buckets are allocated when
the wrapper is made and live as long as it does; with gradient_as_bucket_view the gradients are views into them, so
that zero_grad frees nothing, and each new gradient exists beside its bucket for a moment. The forward passes before
the last of a step run under no_sync, where the reducer does not listen: their gradients stand beside the buckets
until the last backward pass moves them in (reducer.cpp autograd_hook, mark_variable_ready_dense).
"""

from __future__ import annotations

from launcher.planner import optimizer
from launcher.planner.foreach import foreach_term
from launcher.planner.gradients import (
    gradient_terms,
    gradients_so_far,
    in_flight_numel,
    is_of_experts,
    made_numel,
)
from launcher.planner.moments import EMBEDDING, HEAD, Moment, Point
from launcher.planner.outside import managed_term
from launcher.planner.sharding import alike
from launcher.planner.sharding.broadcast import LIMIT_BYTES, broadcast_bytes
from launcher.planner.sharding.loading import quantising
from launcher.planner.sharding.tied import waiting_numel
from launcher.planner.terms import FROM_FIRST_STEP, FROM_WRAP, at, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import whole_weights
from launcher.planner.workload import Workload

SOURCE = "torch 2.13 csrc/distributed/c10d/reducer.cpp"
ACCUMULATE_SOURCE = "torch 2.13 autograd AccumulateGrad"

GATHERS: tuple[Point, ...] = ()  # every parameter is there
after_evaluation = alike.after_evaluation
first_steps = alike.first_steps
fullest_block = alike.fullest_block


def rank_classes(work: Workload) -> tuple[tuple[range, int], ...]:
    """Every rank holds the same."""
    return ((range(work.world_size), 0),)


def is_wrapped(work: Workload) -> bool:
    """Whether there is a reducer."""
    return work.world_size > 1


def has_views(work: Workload) -> bool:
    """Whether gradients live in the buckets."""
    return is_wrapped(work) and bool(work.spec.shard.gradient_as_bucket_view)


def terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Weights, buckets and optimizer states, whole."""
    del rank  # all ranks are alike
    return (
        *whole_weights(work),
        *quantising(work),
        *_broadcast(work),
        *_buckets(work),
        *_gradients(work),
        *_optimizer_states(work),
    )


def own_terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Every rank holds the same."""
    del work, rank
    return ()


def terms_at(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """The gradients that exist, and the one just computed."""
    del rank
    return (*_so_far(work, moment), *_in_flight(work, moment))


def forward_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Nothing is gathered."""
    del work, moment
    return ()


def bucket_bytes(work: Workload) -> int:
    """All buckets together: as large as the gradients, however they are cut."""
    return work.inventory.trained_numel * work.gradient_bytes


def _broadcast(work: Workload) -> tuple[Term, ...]:
    """Rank 0's weights are sent in flat pieces when the wrapper is made."""
    size_bytes = broadcast_bytes(work) if is_wrapped(work) else 0
    later = bucket_bytes(work)
    return term(
        "weights being broadcast",
        TermKind.SHARDING_BUFFERS,
        max(size_bytes - later, 0),
        (Phase.WRAP,),
        formula=f"two flat pieces of at least {LIMIT_BYTES:,} B or all there is: {size_bytes:,} B,"
        f" before {later:,} B of buckets",
        source="torch 2.13 nn/parallel/distributed.py broadcast_bucket_size; csrc/distributed/c10d/comm.cpp",
    )


def _buckets(work: Workload) -> tuple[Term, ...]:
    if not is_wrapped(work):
        return ()
    viewed = ("gradients in buckets", TermKind.GRADIENTS)
    name, kind = viewed if has_views(work) else ("buckets", TermKind.SHARDING_BUFFERS)
    return term(name, kind, bucket_bytes(work), FROM_WRAP, formula=_formula(work), source=SOURCE)


def _gradients(work: Workload) -> tuple[Term, ...]:
    if not has_views(work):
        return gradient_terms(work, whole_bytes=bucket_bytes(work), formula=_formula(work), source=ACCUMULATE_SOURCE)
    return term(
        "gradients beside the buckets",
        TermKind.GRADIENTS,
        bucket_bytes(work) if work.accumulates else 0,
        (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD),
        formula=f"{_formula(work)}, under no_sync",
        source=SOURCE,
    )


def _formula(work: Workload) -> str:
    return f"{work.inventory.trained_numel:,} elements x {work.gradient_bytes} B"


def _so_far(work: Workload, moment: Moment) -> tuple[Term, ...]:
    made = 0 if has_views(work) else made_numel(work.inventory, moment)
    return gradients_so_far(work, moment, made_bytes=made * work.gradient_bytes, source=ACCUMULATE_SOURCE)


def _in_flight(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The gradient that was just computed: under autocast first in the compute dtype, then in fp32; and, with bucket
    views or accumulation, before it is added to what is there. A tied head's waits for the embedding's."""
    numel = in_flight_numel(work.inventory, moment)
    # Neither a lookup nor a grouped product of experts is.
    is_cast = work.autocasts_weights and moment is not EMBEDDING and not is_of_experts(work.inventory, moment)
    is_beside = work.accumulates or has_views(work)
    width = (work.matmul_bytes if is_cast else 0) + (work.gradient_bytes if is_beside else 0)
    waits = moment is EMBEDDING or (is_beside and moment is not HEAD)
    waiting = waiting_numel(work.inventory, moment) if waits else 0
    return at(
        moment,
        "gradient in flight",
        TermKind.GRADIENTS,
        numel * width + waiting * work.gradient_bytes,
        formula=f"{numel:,} elements x {width} B + {waiting:,} waiting x {work.gradient_bytes} B",
        source=SOURCE if is_wrapped(work) else ACCUMULATE_SOURCE,
    )


def _optimizer_states(work: Workload) -> tuple[Term, ...]:
    tensors = work.inventory.trained_tensors
    kind = work.spec.train.optimizer
    return (
        term(
            "optimizer states",
            TermKind.OPTIMIZER_STATES,
            optimizer.states_bytes(kind, tensors, work.dtypes.optimizer_states),
            FROM_FIRST_STEP,
            formula=f"2 moments x {work.inventory.trained_numel:,} elements ({kind})",
            source=optimizer.SOURCES[kind],
        )
        + managed_term(work, tensors)
        + foreach_term(work, work.inventory.trained_numel)
    )
