"""DDP: everything on every rank, and flat buckets to reduce gradients in. On one rank there is no wrapper.

Source: torch 2.13 nn/parallel/distributed.py and csrc/distributed/c10d/reducer.cpp. The buckets are allocated when
the wrapper is made and live as long as it does; with gradient_as_bucket_view the gradients are views into them, so
that zero_grad frees nothing, and each new gradient exists beside its bucket for a moment.
"""

from __future__ import annotations

from launcher.planner import optimizer
from launcher.planner.foreach import foreach_term
from launcher.planner.gradients import Moment, gradient_terms, numel_with_gradients
from launcher.planner.inventory import State
from launcher.planner.outside import managed_term
from launcher.planner.terms import FROM_FIRST_STEP, FROM_WRAP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import whole_weights
from launcher.planner.workload import Workload

SOURCE = "torch 2.13 csrc/distributed/c10d/reducer.cpp"


def rank_classes(work: Workload) -> tuple[tuple[int, ...], ...]:
    """Every rank holds the same."""
    return (tuple(range(work.world_size)),)


def terms(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """Weights, gradients or buckets, and optimizer states, whole."""
    del rank  # all ranks are alike
    return (*whole_weights(work), *_gradients(work, moment), *_in_flight(work, moment), *_optimizer_states(work))


def bucket_bytes(work: Workload) -> int:
    """All buckets together: as large as the gradients, however they are cut."""
    return work.inventory.trained_numel * work.gradient_bytes


def _gradients(work: Workload, moment: Moment) -> tuple[Term, ...]:
    numel, width = work.inventory.trained_numel, work.gradient_bytes
    formula = f"{numel:,} elements x {width} B"
    is_wrapped = work.world_size > 1
    buckets: tuple[Term, ...] = ()
    if is_wrapped:
        is_view = bool(work.spec.shard.gradient_as_bucket_view)
        name, kind = ("gradients in buckets", TermKind.GRADIENTS) if is_view else ("buckets", TermKind.SHARDING_BUFFERS)
        buckets = term(name, kind, bucket_bytes(work), FROM_WRAP, formula=formula, source=SOURCE)
        if is_view:
            return buckets
    return buckets + gradient_terms(
        whole_bytes=numel * width,
        so_far_bytes=numel_with_gradients(work.inventory, moment) * width,
        accumulates=work.accumulates,
        formula=formula,
        source="torch 2.13 autograd AccumulateGrad",
    )


def _in_flight(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The gradient that was just computed: under autocast first in the compute dtype, then in fp32; and, with bucket
    views or accumulation, before it is added to what is there."""
    group = (work.inventory.root,) if moment is Moment.AFTER_BLOCKS else work.inventory.blocks
    numel = max((p.numel for block in group for p in block.parameters if p.state.is_trained), default=0)
    is_cast = work.autocasts_weights and moment is not Moment.AFTER_BLOCKS  # an embedding is not
    width = work.matmul_bytes if is_cast else 0
    if work.accumulates or (work.world_size > 1 and work.spec.shard.gradient_as_bucket_view):
        width += work.gradient_bytes
    return term(
        "gradient in flight",
        TermKind.GRADIENTS,
        numel * width,
        (Phase.BACKWARD,),
        formula=f"largest parameter {moment}, {numel:,} elements x {width} B",
        source=SOURCE,
    )


def _optimizer_states(work: Workload) -> tuple[Term, ...]:
    tensors = tuple((p.numel, count) for p, count in work.inventory.counted(State.TRAINED, State.ADAPTER))
    kind = work.spec.train.optimizer
    return term(
        "optimizer states",
        TermKind.OPTIMIZER_STATES,
        optimizer.states_bytes(kind, tensors, work.dtypes.optimizer_states),
        FROM_FIRST_STEP,
        formula=f"2 moments x {work.inventory.trained_numel:,} elements ({kind})",
        source=optimizer.SOURCES[kind],
    ) + managed_term(work, tensors) + foreach_term(work, work.inventory.trained_numel)
