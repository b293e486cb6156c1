"""The plans of all ranks: what the sharding holds, the activations, the loss, workspaces, and what lies outside."""

from __future__ import annotations

import dataclasses

from launcher.planner.activations import activation_terms
from launcher.planner.gradients import Moment
from launcher.planner.loss import loss_terms
from launcher.planner.outside import outside_terms
from launcher.planner.sharding import SHARDINGS
from launcher.planner.terms import peak_bytes
from launcher.planner.types import Phase, RankPlan, Term, TermKind
from launcher.planner.workload import Workload
from launcher.planner.workspaces import workspace_terms

STEP = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)


def rank_plans(work: Workload) -> tuple[RankPlan, ...]:
    """One plan for each class of ranks that need the same."""
    sharding = SHARDINGS[work.spec.shard.kind]
    return tuple(
        RankPlan(ranks=ranks, terms=with_first_step(_terms(work, ranks[0]))) for ranks in sharding.rank_classes(work)
    )


def with_first_step(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms, those alive at the peak of the first step marked so: it is a later step's, without optimizer states
    until the optimizer makes them."""
    peak = max(STEP, key=lambda phase: sum(t.size_bytes for t in terms if _is_in_first_step(t, phase)))
    return tuple(_marked(found, in_first_step=_is_in_first_step(found, peak)) for found in terms)


def _is_in_first_step(found: Term, phase: Phase) -> bool:
    exists = found.kind is not TermKind.OPTIMIZER_STATES or phase is Phase.OPTIMIZER
    return exists and phase in found.phases


def _marked(found: Term, *, in_first_step: bool) -> Term:
    if in_first_step is (Phase.FIRST_STEP in found.phases):
        return found
    wanted = (*found.phases, Phase.FIRST_STEP) if in_first_step else found.phases
    phases = tuple(p for p in Phase if p in wanted and (in_first_step or p is not Phase.FIRST_STEP))
    return dataclasses.replace(found, phases=phases)


def _terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """All terms of a rank, its backward phase at the moment that needs the most."""
    sharding = SHARDINGS[work.spec.shard.kind]
    steady = (*loss_terms(work), *outside_terms(work))
    moments = [
        (*sharding.terms(work, rank, moment), *activation_terms(work, moment), *workspace_terms(work, moment))
        for moment in Moment
    ]
    return (*max(moments, key=lambda terms: peak_bytes(terms, Phase.BACKWARD)), *steady)
