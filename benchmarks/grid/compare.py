"""The closed form beside a trace of the same rank: how far it is off, from step to step, at a step's peak, and at the
job's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.grid.cases import Case
from benchmarks.grid.summary import STEADY, Summary
from launcher.planner.ranks import plan_of_rank
from launcher.planner.traced import UNSEEN
from launcher.planner.types import Phase, RankPlan, TermKind
from launcher.units import MIB
from tests.planner_jobs import estimate

PERSISTENT_BOUND = 0.03
PEAK_BOUND = 0.08
LASTING = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER, Phase.EVALUATION)
NEGLIGIBLE_BYTES = 2 * MIB
"""The allocator takes no less from a device: where a rank keeps some kilobytes, shares are of so much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One case. Errors are signed shares of the trace: closed form / trace - 1. peak: of a steady step; job: of all
    that was traced, loading and evaluation included."""

    case: Case
    peak_bytes: int
    peak_error: float
    job_error: float
    persistent_error: float
    by_phase: dict[str, float]

    @property
    def misses(self) -> bool:
        """Whether any is out of its bound."""
        peaks = (self.peak_error, self.job_error)
        return any(abs(error) > PEAK_BOUND for error in peaks) or abs(self.persistent_error) > PERSISTENT_BOUND


def compare(case: Case, found: Summary, rank: int) -> Compared:
    """The closed form for the rank that was traced, against its summary."""
    plan = plan_of_rank(estimate(case.spec()).work, rank)
    planned = {phase: planned_bytes(plan, Phase(phase)) for phase in found.peaks}
    return Compared(
        case=case,
        peak_bytes=found.peak_bytes,
        peak_error=error(_peak(planned, STEADY), found.peak_bytes),
        job_error=error(_peak(planned, planned), _peak(found.peaks, found.peaks)),
        persistent_error=error(persistent_bytes(plan), found.persistent_bytes),
        by_phase={phase: error(planned[phase], found.peaks[phase]) for phase in found.peaks},
    )


def _peak(sizes: dict[str, int], phases: Iterable[str]) -> int:
    return max(sizes.get(phase, 0) for phase in phases)


def error(planned: int, traced: int) -> float:
    """The signed share by which a plan is off."""
    return (planned - traced) / max(traced, NEGLIGIBLE_BYTES)


def planned_bytes(plan: RankPlan, phase: Phase) -> int:
    """What a plan has in a phase of all that a trace can see."""
    unseen = sum(term.size_bytes for term in plan.terms if phase in term.phases and term.name in UNSEEN)
    return plan.allocated_bytes_in(phase) - unseen


def persistent_bytes(plan: RankPlan) -> int:
    """What stands in every phase from the first step on."""
    return sum(
        term.size_bytes
        for term in plan.terms
        if term.kind not in (TermKind.OUTSIDE, TermKind.WORKSPACES) and all(phase in term.phases for phase in LASTING)
    )
