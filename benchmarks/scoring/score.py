"""What the planner answers for a case, beside what was measured."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.models import model_shape
from launcher.planner.estimate import Estimate, Estimator
from launcher.planner.practice import Practice
from launcher.planner.stream import reserved_bytes
from launcher.planner.types import Phase, RankPlan
from launcher.planner.verdict import need
from launcher.spec import to_json

from .cases import Case, Metric
from .jobs import Job

Bounds = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One figure of one case: measured, and as an estimator answers it, with the lowest and highest that it allows."""

    case: Case
    estimator: str
    metric: Metric
    method: str
    sharding: str
    measured_bytes: int
    predicted_bytes: int
    bounds: Bounds | None = None

    @property
    def is_covered(self) -> bool | None:
        """Whether the measurement lies between the bounds that were given with the answer; None without any."""
        return None if self.bounds is None else self.bounds[0] <= self.measured_bytes <= self.bounds[1]

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
REPLAYED = "closed form, replayed"


def answer(job: Job) -> Estimate:
    """The planner's closed form."""
    return Estimator(model_shape(job.spec.model.config), job.practice).estimate(job.spec)


# Published measurements are of training steps: nobody evaluated or saved while the peak was taken.
NOT_MEASURED = frozenset({Phase.EVALUATION, Phase.SAVE})


def training_part(rank: RankPlan) -> RankPlan:
    """A rank's plan without the phases that no measurement went through."""
    kept = ((term, tuple(phase for phase in term.phases if phase not in NOT_MEASURED)) for term in rank.terms)
    return dataclasses.replace(
        rank, terms=tuple(dataclasses.replace(term, phases=phases) for term, phases in kept if phases)
    )


def predicted_bytes(estimate: Estimate, metric: Metric) -> int:
    """The figure of the worst rank that a measurement of this kind is held against."""
    worst = _worst(estimate)
    if metric is Metric.ALLOCATED:
        return worst.allocated_bytes
    found = need(estimate.spec, worst, practice=estimate.work.practice)
    return found.reserved_bytes if metric is Metric.RESERVED else found.process_bytes


def bounds_of(estimate: Estimate, metric: Metric) -> Bounds:
    """What a plan allows a figure to be. Of tensors alone, what its interval says of them; else from what it needs to
    what it may reserve."""
    worst = _worst(estimate)
    found, outside = need(estimate.spec, worst, practice=estimate.work.practice), worst.outside_bytes
    if metric is Metric.ALLOCATED:
        low = found.low_bytes - outside
        return low, 2 * worst.allocated_bytes - low
    beside = outside if metric is Metric.RESERVED else 0
    return found.low_bytes - beside, found.high_bytes - beside


def replayed_bytes(estimate: Estimate, practice: Practice) -> dict[Metric, int]:
    """Reserved and process by the replay of the job's own stream; empty where that is not known."""
    worst = _worst(estimate)
    key = (to_json(estimate.spec), practice)
    if key not in _replayed:
        _replayed[key] = reserved_bytes(estimate.work, worst.terms)
    reserved = _replayed[key]
    if reserved is None:
        return {}
    return {Metric.RESERVED: reserved, Metric.PROCESS: reserved + worst.outside_bytes}


# Published measurements repeat some jobs, and a replay takes half a second.
_replayed: dict[tuple[str, Practice], int | None] = {}


def _worst(estimate: Estimate) -> RankPlan:
    ranks = (training_part(rank) for rank in estimate.ranks)
    return max(ranks, key=lambda rank: rank.allocated_bytes + rank.outside_bytes)


def score_job(case: Case, job: Job) -> list[Score]:
    """Every figure of a case beside the planner's, by both of its ways to it."""
    estimate = answer(job)
    metrics = [measured.metric for measured in case.measured]
    needs_replay = any(metric is not Metric.ALLOCATED for metric in metrics)
    computed = {metric: predicted_bytes(estimate, metric) for metric in metrics}
    replayed = replayed_bytes(estimate, job.practice) if needs_replay else {}
    bounds = {OURS: {metric: bounds_of(estimate, metric) for metric in metrics}}
    return scored(case, job, {OURS: computed, REPLAYED: replayed}, bounds)


def scored(
    case: Case,
    job: Job,
    answers: Mapping[str, Mapping[Metric, int]],
    bounds: Mapping[str, Mapping[Metric, Bounds]] | None = None,
) -> list[Score]:
    """Every figure of a case beside what each estimator answers to it; where one answers nothing it is left out."""
    return [
        Score(
            case=case,
            estimator=estimator,
            metric=measured.metric,
            method=job.spec.method.kind.value,
            sharding=job.sharding.label,
            measured_bytes=measured.size_bytes,
            predicted_bytes=predicted[measured.metric],
            bounds=(bounds or {}).get(estimator, {}).get(measured.metric),
        )
        for measured in case.measured
        for estimator, predicted in answers.items()
        if measured.metric in predicted
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
