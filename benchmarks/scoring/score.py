"""What the planner answers for a case, beside what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.models import model_shape
from launcher.planner.estimate import Estimate, Estimator

from .cases import Case, Metric
from .jobs import Job, job_of
from .reading import Unmodelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One figure of one case: measured, and as an estimator answers it."""

    case: Case
    estimator: str
    metric: Metric
    method: str
    sharding: str
    measured_bytes: int
    predicted_bytes: int

    @property
    def error_percent(self) -> float:
        """Signed: positive where the plan says too much."""
        return 100 * (self.predicted_bytes - self.measured_bytes) / self.measured_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A case that is not scored, and why."""

    id: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Errors in percent over some scores."""

    count: int
    median_signed: float
    median: float
    mean: float
    p95: float
    worst: float


OURS = "closed form"


def answer(job: Job) -> Estimate:
    """The planner's closed form."""
    return Estimator(model_shape(job.spec.model.config), job.practice).estimate(job.spec)


def predicted_bytes(estimate: Estimate, metric: Metric) -> int:
    """The figure of the worst rank that a measurement of this kind is held against."""
    if metric is Metric.ALLOCATED:
        return max(rank.allocated_bytes for rank in estimate.ranks)
    return estimate.need.reserved_bytes if metric is Metric.RESERVED else estimate.need.process_bytes


def score_case(case: Case) -> list[Score] | Skipped:
    """Every figure of a case scored, or the reason why none is."""
    try:
        job = job_of(case)
    except Unmodelled as reason:
        return Skipped(id=case.id, group=case.group, reason=str(reason))
    estimate = answer(job)
    return [
        Score(
            case=case,
            estimator=OURS,
            metric=measured.metric,
            method=job.spec.method.kind.value,
            sharding=job.sharding.label,
            measured_bytes=measured.size_bytes,
            predicted_bytes=predicted_bytes(estimate, measured.metric),
        )
        for measured in case.measured
    ]


def summarise(scores: Iterable[Score]) -> Summary:
    """Median, mean, 95th percentile (nearest rank) and worst of the absolute errors, and the signed median."""
    signed = [score.error_percent for score in scores]
    errors = sorted(abs(error) for error in signed)
    return Summary(
        count=len(errors),
        median_signed=statistics.median(signed),
        median=statistics.median(errors),
        mean=statistics.fmean(errors),
        p95=errors[math.ceil(0.95 * len(errors)) - 1],
        worst=errors[-1],
    )
