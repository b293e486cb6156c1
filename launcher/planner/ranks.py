"""The plans of all ranks: what the sharding holds, the activations, the loss, workspaces, and what lies outside."""

from __future__ import annotations

from launcher.planner.activations import activation_terms
from launcher.planner.gradients import Moment
from launcher.planner.loss import loss_terms
from launcher.planner.outside import outside_terms
from launcher.planner.sharding import SHARDINGS
from launcher.planner.terms import peak_bytes
from launcher.planner.types import Phase, RankPlan, Term
from launcher.planner.workload import Workload
from launcher.planner.workspaces import workspace_terms


def rank_plans(work: Workload) -> tuple[RankPlan, ...]:
    """One plan for each class of ranks that need the same."""
    sharding = SHARDINGS[work.spec.shard.kind]
    return tuple(RankPlan(ranks=ranks, terms=_terms(work, ranks[0])) for ranks in sharding.rank_classes(work))


def _terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """All terms of a rank, its backward phase at the moment that needs the most."""
    sharding = SHARDINGS[work.spec.shard.kind]
    steady = (*loss_terms(work), *outside_terms(work))
    moments = [
        (*sharding.terms(work, rank, moment), *activation_terms(work, moment), *workspace_terms(work, moment))
        for moment in Moment
    ]
    return (*max(moments, key=lambda terms: peak_bytes(terms, Phase.BACKWARD)), *steady)
