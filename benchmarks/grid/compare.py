"""The closed form beside a trace of the same rank: how far it is off, from step to step and at the peak."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.grid.cases import Case
from benchmarks.grid.summary import STEADY, Summary
from launcher.planner.ranks import plan_of_rank
from launcher.planner.types import Phase, RankPlan, TermKind
from tests.planner_jobs import estimate

PERSISTENT_BOUND = 0.03
PEAK_BOUND = 0.08
LASTING = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER, Phase.EVALUATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One case. Errors are signed shares of the trace: closed form / trace - 1."""

    case: Case
    peak_bytes: int
    peak_error: float
    persistent_error: float
    by_phase: dict[str, float]

    @property
    def misses(self) -> bool:
        """Whether either is out of its bound."""
        return abs(self.peak_error) > PEAK_BOUND or abs(self.persistent_error) > PERSISTENT_BOUND


def compare(case: Case, found: Summary, rank: int) -> Compared:
    """The closed form for the rank that was traced, against its summary."""
    plan = plan_of_rank(estimate(case.spec()).work, rank)
    peak = max(plan.allocated_bytes_in(Phase(phase)) for phase in STEADY)
    return Compared(
        case=case,
        peak_bytes=found.peak_bytes,
        peak_error=peak / found.peak_bytes - 1,
        persistent_error=persistent_bytes(plan) / found.persistent_bytes - 1,
        by_phase={phase: plan.allocated_bytes_in(Phase(phase)) / found.peaks[phase] - 1 for phase in STEADY},
    )


def persistent_bytes(plan: RankPlan) -> int:
    """What stands in every phase from the first step on. cuBLAS' workspace is the driver's, and in no trace."""
    return sum(
        term.size_bytes
        for term in plan.terms
        if term.kind not in (TermKind.OUTSIDE, TermKind.WORKSPACES) and all(phase in term.phases for phase in LASTING)
    )
