"""The plans of all ranks: what the sharding holds, the activations, the loss, workspaces, and what lies outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from launcher.planner.activations import activation_terms, activations_at, forward_activations
from launcher.planner.inventory import State
from launcher.planner.logits import evaluated_logits, logits_at
from launcher.planner.moments import EVALUATIONS, FORWARDS, MOMENTS, Moment, Point
from launcher.planner.outside import outside_terms
from launcher.planner.sharding import SHARDINGS, FirstStep, Passing, Sharding
from launcher.planner.sharding.partition import BEFORE_STATES
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
    found = shared_terms(work, first)
    return tuple(
        RankPlan(ranks=_numbers(ranks), terms=found.and_own(sharding.own_terms(work, rank))) for ranks, rank in classes
    )


@lru_cache(maxsize=64)
def _numbers(ranks: range) -> tuple[int, ...]:
    """The ranks of a class; thousands in a large job, and the same in the next."""
    return tuple(ranks)


def plan_of_rank(work: Workload, rank: int) -> RankPlan:
    """One rank's own plan, where its class is planned for another."""
    sharding = SHARDINGS[work.spec.shard.kind]
    return RankPlan(ranks=(rank,), terms=shared_terms(work, rank).and_own(sharding.own_terms(work, rank)))


def shared_terms(work: Workload, rank: int) -> Shared | Marked:
    """What a rank has, but for what is its own."""
    sharding = SHARDINGS[work.spec.shard.kind]
    lasting = (*sharding.terms(work, rank), *passing_terms(work))
    forward = (*_trained(work, sharding), *_evaluated(work, sharding))
    moments = (*_forward(work, sharding, forward), *_from_loss_on(work, sharding, rank))
    steady = _highest(moments)
    if early := sharding.first_steps(work):
        return Marked(_with_first_steps(work, rank, lasting, joined(lasting, steady.values()), early))
    return Shared(lasting, steady, _highest(_after_evaluation(work, sharding, moments)))


def passing_terms(work: Workload) -> tuple[Term, ...]:
    """What every rank has, whatever the moment."""
    return (*activation_terms(work), *workspace_terms(work), *outside_terms(work))


def _highest(moments: Iterable[tuple[Moment, tuple[Term, ...]]]) -> dict[Phase, tuple[Moment, tuple[Term, ...]]]:
    """For each phase that has moments, the one that needs the most, with its terms."""
    highest: dict[Phase, tuple[int, Moment, tuple[Term, ...]]] = {}
    for moment, terms in moments:
        size_bytes = sum(found.size_bytes for found in terms)
        if moment.phase not in highest or size_bytes > highest[moment.phase][0]:
            highest[moment.phase] = (size_bytes, moment, terms)
    return {phase: (moment, terms) for phase, (_, moment, terms) in highest.items()}


def _after_evaluation(
    work: Workload, sharding: Sharding, moments: Iterable[tuple[Moment, tuple[Term, ...]]]
) -> Iterator[tuple[Moment, tuple[Term, ...]]]:
    """The same moments in a step that follows an evaluation."""
    for moment, terms in moments:
        gathered = sharding.after_evaluation(work, moment)
        if gathered is None:
            yield moment, terms
        else:
            names = {found.name for found in gathered}
            kept = (found for found in terms if found.name not in names)
            renamed = (dataclasses.replace(found, name=f"{found.name} after an evaluation") for found in gathered)
            yield moment, (*renamed, *kept)


def _with_first_steps(
    work: Workload, rank: int, lasting: tuple[Term, ...], found: tuple[Term, ...], early: tuple[FirstStep, ...]
) -> tuple[Term, ...]:
    """Terms with those of the first steps, which are at their highest in one phase of one of them."""
    highest: tuple[int, set[str], tuple[Term, ...]] = (0, set(), ())
    for step in early:
        moments = _highest((*_forward(work, step, _trained(work, step)), *_from_loss_on(work, step, rank)))
        for phase in STEP:
            held = [t for t in lasting if (phase in t.phases if step.has_states else _is_in_first_step(t, phase))]
            _, passing = moments.get(phase, (None, ()))
            size_bytes = sum(t.size_bytes for t in (*held, *passing) if t.kind is not TermKind.OUTSIDE)
            if size_bytes > highest[0]:
                highest = (size_bytes, {t.name for t in held}, passing)
    _, names, passing = highest
    marked = tuple(t.alive_in(_phases(t.phases, t.name in names)) for t in found)
    return joined(marked, [("in the first steps", tuple(t.alive_in((Phase.FIRST_STEP,)) for t in passing))])


def _trained(work: Workload, sharding: Passing) -> tuple[Moment, ...]:
    """The forward pass of a step up to the head."""
    return tuple(FORWARDS[point] for point in (*_in_blocks(work, sharding), Point.NORM))


def _evaluated(work: Workload, sharding: Passing) -> tuple[Moment, ...]:
    """That of an evaluation with its loss."""
    return tuple(EVALUATIONS[point] for point in (*_in_blocks(work, sharding), Point.HEAD, Point.LOSS))


def _in_blocks(work: Workload, sharding: Passing) -> tuple[Point, ...]:
    quantised = (Point.QUANTISED,) if work.inventory.numel(State.QUANTISED) else ()
    return (Point.BLOCK, *quantised, *sharding.GATHERS)


def _forward(work: Workload, sharding: Passing, moments: Iterable[Moment]) -> Iterator[tuple[Moment, tuple[Term, ...]]]:
    for moment in moments:
        computed = _computed_forward(work, moment, sharding.fullest_block(work, moment))
        yield moment, (*sharding.forward_terms(work, moment), *computed)


@lru_cache(maxsize=64)
def _computed_forward(work: Workload, moment: Moment, num_run: int) -> tuple[Term, ...]:
    """What the model itself needs, whatever the sharding; the same in the first steps and in later ones."""
    return (
        *forward_activations(work, moment, num_run),
        *evaluated_logits(work, moment),
        *forward_workspaces(work, moment),
    )


def _from_loss_on(work: Workload, sharding: Passing, rank: int) -> Iterator[tuple[Moment, tuple[Term, ...]]]:
    for moment in MOMENTS:
        yield moment, (*sharding.terms_at(work, rank, moment), *_computed_at(work, moment))


@lru_cache(maxsize=64)
def _computed_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    return (*activations_at(work, moment), *logits_at(work, moment), *workspaces_at(work, moment))


def joined(found: Iterable[Term], moments: Iterable[tuple[Moment | str, tuple[Term, ...]]]) -> tuple[Term, ...]:
    """Terms with those of the moments: what is the same in two phases is one term, and no two have one name."""
    by_name = {term.name: term for term in found}
    for moment, terms in moments:
        for made in terms:
            for name in (made.name, f"{made.name}, {moment}"):
                known = by_name.get(name)
                if known is None:
                    by_name[name] = made if name == made.name else dataclasses.replace(made, name=name)
                    break
                if (known.size_bytes, known.formula) == (made.size_bytes, made.formula):
                    by_name[name] = known.alive_in((*known.phases, *made.phases))
                    break
            else:
                raise AssertionError(f"two terms are {made.name}, {moment}")
    return tuple(by_name.values())


class Marked:
    """Terms of which those of the first steps are marked already."""

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = terms

    def and_own(self, own: tuple[Term, ...]) -> tuple[Term, ...]:
        """All terms of one class."""
        return (*own, *self.terms)


class Shared:
    """The terms that several classes of ranks have alike, to be joined by those that a class has of its own.

    Those alive at the peak of the first step are marked so: it is a later step's, without optimizer states until the
    optimizer makes them, and after an evaluation.

    lasting: terms that do not depend on the moment; steady and first: the highest moments of a later step and the
    first.
    """

    def __init__(
        self,
        lasting: tuple[Term, ...],
        steady: Mapping[Phase, tuple[Moment, tuple[Term, ...]]],
        first: Mapping[Phase, tuple[Moment, tuple[Term, ...]]],
    ) -> None:
        self.lasting = {found.name for found in lasting}
        self.terms = joined(lasting, steady.values())
        self.differing = {phase: first[phase] for phase in first if first[phase][1] is not steady[phase][1]}
        in_moments = {phase: sum(t.size_bytes for t in terms) for phase, (_, terms) in first.items()}
        self.sizes = _with_sizes({phase: in_moments.get(phase, 0) for phase in STEP}, lasting)
        self.marked: dict[Phase, tuple[Term, ...]] = {}

    def and_own(self, own: tuple[Term, ...]) -> tuple[Term, ...]:
        """All terms of one class."""
        sizes = _with_sizes(self.sizes, own)
        peak = max(STEP, key=sizes.__getitem__)
        if peak not in self.marked:
            self.marked[peak] = self._with_first_step(peak)
        return (*_marked(own, peak), *self.marked[peak])

    def _with_first_step(self, peak: Phase) -> tuple[Term, ...]:
        if peak not in self.differing:
            return tuple(_marked(self.terms, peak))
        moment, terms = self.differing[peak]
        lasting = _marked((found for found in self.terms if found.name in self.lasting), peak)
        others = (found for found in self.terms if found.name not in self.lasting)
        return joined((*lasting, *others), [(moment, tuple(found.alive_in((Phase.FIRST_STEP,)) for found in terms))])


def _with_sizes(sizes: Mapping[Phase, int], terms: Iterable[Term]) -> dict[Phase, int]:
    """What the first step has in each phase, with more terms."""
    found = dict(sizes)
    for term in terms:
        for phase in term.phases:
            if phase in found and _is_in_first_step(term, phase):
                found[phase] += term.size_bytes
    return found


def _is_in_first_step(found: Term, phase: Phase) -> bool:
    exists = found.kind is not TermKind.OPTIMIZER_STATES or phase is Phase.OPTIMIZER
    return exists and phase in found.phases and found.name != BEFORE_STATES


def _marked(terms: Iterable[Term], peak: Phase) -> Iterator[Term]:
    return (term.alive_in(_phases(term.phases, _is_in_first_step(term, peak))) for term in terms)


@lru_cache(maxsize=256)
def _phases(phases: tuple[Phase, ...], in_first_step: bool) -> tuple[Phase, ...]:
    if in_first_step is (Phase.FIRST_STEP in phases):
        return phases
    wanted = (*phases, Phase.FIRST_STEP) if in_first_step else phases
    return tuple(p for p in Phase if p in wanted and (in_first_step or p is not Phase.FIRST_STEP))
