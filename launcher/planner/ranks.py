"""The plans of all ranks: what the sharding holds, the activations, the loss, workspaces, and what lies outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from launcher.planner.activations import activation_terms, activations_at, forward_activations
from launcher.planner.logits import evaluated_logits, logits_at
from launcher.planner.moments import EVALUATIONS, FORWARDS, MOMENTS, Moment, Point
from launcher.planner.outside import outside_terms
from launcher.planner.sharding import SHARDINGS, Sharding
from launcher.planner.types import Phase, RankPlan, Term, TermKind
from launcher.planner.workload import Workload
from launcher.planner.workspaces import forward_workspaces, workspace_terms, workspaces_at

STEP = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)


def rank_plans(work: Workload) -> tuple[RankPlan, ...]:
    """One plan for each class of ranks that need the same. Classes differ in what they hold from step to step, not in
    what comes and goes."""
    sharding = SHARDINGS[work.spec.shard.kind]
    classes = sharding.rank_classes(work)
    _, first = classes[0]
    passing, moments = passing_terms(work), highest_moments(work, first)
    besides = sharding.after_evaluation(work)
    return tuple(
        RankPlan(
            ranks=tuple(ranks),
            terms=with_first_step(joined((*sharding.terms(work, rank), *passing), moments), besides),
        )
        for ranks, rank in classes
    )


def plan_of_rank(work: Workload, rank: int) -> RankPlan:
    """One rank's own plan, where its class is planned for another."""
    sharding = SHARDINGS[work.spec.shard.kind]
    found = joined((*sharding.terms(work, rank), *passing_terms(work)), highest_moments(work, rank))
    return RankPlan(ranks=(rank,), terms=with_first_step(found, sharding.after_evaluation(work)))


def passing_terms(work: Workload) -> tuple[Term, ...]:
    """What every rank has, whatever the moment."""
    return (*activation_terms(work), *workspace_terms(work), *outside_terms(work))


def highest_moments(work: Workload, rank: int) -> list[tuple[Moment, tuple[Term, ...]]]:
    """For each phase that has moments, the one that needs the most, with its terms."""
    sharding = SHARDINGS[work.spec.shard.kind]
    highest: dict[Phase, tuple[int, Moment, tuple[Term, ...]]] = {}
    for moment, terms in (*_forward(work, sharding), *_from_loss_on(work, sharding, rank)):
        size_bytes = sum(found.size_bytes for found in terms)
        if moment.phase not in highest or size_bytes > highest[moment.phase][0]:
            highest[moment.phase] = (size_bytes, moment, terms)
    return [(moment, terms) for _, moment, terms in highest.values()]


def _forward(work: Workload, sharding: Sharding) -> Iterator[tuple[Moment, tuple[Term, ...]]]:
    """The forward pass of a step up to the head, and that of an evaluation with its loss."""
    trained = (FORWARDS[point] for point in (Point.BLOCK, *sharding.GATHERS))
    evaluated = (EVALUATIONS[point] for point in (Point.BLOCK, *sharding.GATHERS, Point.HEAD, Point.LOSS))
    for moment in (*trained, *evaluated):
        yield (
            moment,
            (
                *sharding.forward_terms(work, moment),
                *forward_activations(work, moment),
                *evaluated_logits(work, moment),
                *forward_workspaces(work, moment),
            ),
        )


def _from_loss_on(work: Workload, sharding: Sharding, rank: int) -> Iterator[tuple[Moment, tuple[Term, ...]]]:
    for moment in MOMENTS:
        yield (
            moment,
            (
                *sharding.terms_at(work, rank, moment),
                *activations_at(work, moment),
                *logits_at(work, moment),
                *workspaces_at(work, moment),
            ),
        )


def joined(found: tuple[Term, ...], moments: list[tuple[Moment, tuple[Term, ...]]]) -> tuple[Term, ...]:
    """Terms with those of the moments: what is the same in two phases is one term, and no two have one name."""
    by_name = {term.name: term for term in found}
    for moment, terms in moments:
        for made in terms:
            known = by_name.get(made.name)
            if known is None:
                by_name[made.name] = made
            elif (known.size_bytes, known.formula) == (made.size_bytes, made.formula):
                by_name[made.name] = dataclasses.replace(known, phases=(*known.phases, *made.phases))
            else:
                name = f"{made.name}, {moment}"
                by_name[name] = dataclasses.replace(made, name=name)
    return tuple(by_name.values())


def with_first_step(terms: tuple[Term, ...], besides: Mapping[Phase, tuple[Term, ...]]) -> tuple[Term, ...]:
    """The terms, those alive at the peak of the first step marked so: it is a later step's, without optimizer states
    until the optimizer makes them, and with what the evaluation before it has left."""

    def size_bytes(phase: Phase) -> int:
        alive = (t.size_bytes for t in terms if _is_in_first_step(t, phase))
        return sum(alive) + sum(t.size_bytes for t in besides.get(phase, ()))

    peak = max(STEP, key=size_bytes)
    marked = (_marked(found, in_first_step=_is_in_first_step(found, peak)) for found in terms)
    return (*marked, *besides.get(peak, ()))


def _is_in_first_step(found: Term, phase: Phase) -> bool:
    exists = found.kind is not TermKind.OPTIMIZER_STATES or phase is Phase.OPTIMIZER
    return exists and phase in found.phases


def _marked(found: Term, *, in_first_step: bool) -> Term:
    if in_first_step is (Phase.FIRST_STEP in found.phases):
        return found
    wanted = (*found.phases, Phase.FIRST_STEP) if in_first_step else found.phases
    phases = tuple(p for p in Phase if p in wanted and (in_first_step or p is not Phase.FIRST_STEP))
    return dataclasses.replace(found, phases=phases)
