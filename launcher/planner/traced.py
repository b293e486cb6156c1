"""A plan by trace: the closed form's plan with what was traced in place of what was computed.

Taken from the closed form is what no trace sees: context, NCCL, cuBLAS' workspace, host RAM, files, and the phases that
were not traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.summary import Summary
from launcher.planner.types import MemoryPlan, Phase, RankPlan, Term, TermKind
from launcher.planner.verdict import ONE_RANK, Need, verdict
from launcher.spec import JobSpec

INSTRUMENT = "trace"
FAILED = "closed form, for the trace failed"

# How far a traced peak may be off, in percent of it. On CPU, where every byte can be counted, traces of the job are met
# within 0.5 %. What a tracer does not see on a GPU is scratch memory inside kernels that has no formula here, and what
# the job's data decide; that the closed form does not see either, so that its interval on one GPU holds here, too.
TRACED_INTERVAL_PERCENT = ONE_RANK.percent
# A job that could not be traced is not the kind of job that the closed form was compared with.
WIDENED = 2

# Taken from torch's allocator by a library's handle, with no tensor to show for it.
UNSEEN = ("cuBLAS workspace",)

Summarise = Callable[[JobSpec, int], Summary]
"""The summary of a rank's trace; raises TraceFailed."""


def traced_plan(plan: MemoryPlan, summarise: Summarise) -> MemoryPlan:
    """The plan with every class of ranks traced. Raises TraceFailed."""
    pairs = [(rank, summarise(plan.spec, rank.ranks[0])) for rank in plan.ranks]
    ranks = tuple(_traced_rank(rank, summary) for rank, summary in pairs)
    worst, summary = max(
        zip(ranks, (summary for _, summary in pairs), strict=True),
        key=lambda pair: pair[0].allocated_bytes + pair[0].outside_bytes,
    )
    need = _need(plan, worst, summary)
    return dataclasses.replace(
        plan,
        instrument=INSTRUMENT,
        ranks=ranks,
        allocated_bytes=worst.allocated_bytes,
        reserved_bytes=need.reserved_bytes,
        process_bytes=need.process_bytes,
        process_low_bytes=need.low_bytes,
        process_high_bytes=need.high_bytes,
        least_capacity_bytes=need.least_bytes,
        verdict=verdict(need, plan.capacity_bytes),
    )


def _traced_rank(rank: RankPlan, summary: Summary) -> RankPlan:
    traced = {Phase(peak.phase) for peak in summary.phases}
    untraced = tuple(phase for phase in Phase if phase not in traced)
    return RankPlan(ranks=rank.ranks, terms=(*_traced_terms(summary), *_computed_terms(rank, untraced)))


def _traced_terms(summary: Summary) -> Iterator[Term]:
    """A term for each category and the phases in which it has the same size at the peak."""
    phases_of: dict[tuple[TermKind, int], list[Phase]] = {}
    for peak in summary.phases:
        for category, size_bytes in peak.by_category.items():
            phases_of.setdefault((TermKind(category), size_bytes), []).append(Phase(peak.phase))
    packages = ", ".join(f"{name} {summary.versions[name]}" for name in ("torch", "transformers", "accelerate"))
    for (kind, size_bytes), phases in phases_of.items():
        yield Term(
            name=kind.value,
            kind=kind,
            size_bytes=size_bytes,
            phases=tuple(phases),
            formula=f"at the peak of: {', '.join(phases)}",
            source=f"trace of rank {summary.rank}, {packages}",
        )


def _computed_terms(rank: RankPlan, untraced: tuple[Phase, ...]) -> Iterator[Term]:
    for term in rank.terms:
        if term.kind is TermKind.OUTSIDE or term.name in UNSEEN:
            yield term
        elif phases := tuple(phase for phase in term.phases if phase in untraced):
            yield dataclasses.replace(term, phases=phases)


def _unseen_bytes(rank: RankPlan) -> int:
    return sum(term.size_bytes for term in rank.terms if term.name in UNSEEN)


def _need(plan: MemoryPlan, worst: RankPlan, summary: Summary) -> Need:
    """What the worst rank's process takes. On CPU glibc keeps as much as the closed form says.

    A card that is smaller than what would be reserved on a larger one still holds the job as long as the replay
    survives on it: the allocator gives back what it only keeps. So the card bounds what is reserved.
    """
    allocated, outside = worst.allocated_bytes, worst.outside_bytes
    if plan.spec.device.kind == "cuda":
        least = max(summary.least_capacity_bytes + _unseen_bytes(worst), allocated)
        wanted = max(summary.reserved_bytes + _unseen_bytes(worst), allocated)
        reserved = wanted if plan.capacity_bytes is None else min(wanted, max(plan.capacity_bytes - outside, least))
    else:
        least = reserved = allocated * plan.reserved_bytes // plan.allocated_bytes
    return Need(
        reserved_bytes=reserved,
        process_bytes=reserved + outside,
        least_bytes=least + outside,
        low_bytes=allocated * (100 - TRACED_INTERVAL_PERCENT) // 100 + outside,
        high_bytes=max(reserved, least * (100 + TRACED_INTERVAL_PERCENT) // 100) + outside,
    )


def untraced_plan(plan: MemoryPlan) -> MemoryPlan:
    """The closed form's plan of a job that could not be traced, less sure of itself."""
    wider = (WIDENED - 1) * (plan.process_bytes - plan.process_low_bytes)
    need = Need(
        reserved_bytes=plan.reserved_bytes,
        process_bytes=plan.process_bytes,
        least_bytes=plan.least_capacity_bytes,
        low_bytes=max(0, plan.process_low_bytes - wider),
        high_bytes=plan.process_high_bytes + wider,
    )
    return dataclasses.replace(
        plan,
        instrument=FAILED,
        process_low_bytes=need.low_bytes,
        process_high_bytes=need.high_bytes,
        verdict=verdict(need, plan.capacity_bytes),
    )


def plan_by_trace(plan: MemoryPlan, summarise: Summarise, complain: Callable[[str], None]) -> MemoryPlan:
    """The traced plan, or the closed form's where the trace fails; complain() is then told why."""
    try:
        return traced_plan(plan, summarise)
    except TraceFailed as error:
        complain(str(error))
        return untraced_plan(plan)
