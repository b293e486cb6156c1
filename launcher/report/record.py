"""Report: a run's end as one frozen record, planned beside measured. Written as report.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.planner.types import MemoryPlan, Phase, RankPlan
from launcher.runs.outcome import Metrics, Outcome
from launcher.runs.records import EvalMetrics, RankMeasurement, Started, Status, TrainMetrics
from launcher.spec import JobSpec

# What a step goes through. On a CPU the allocator's peak is taken over the first steps alone.
STEP_PHASES = (Phase.FIRST_STEP, Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Peak bytes of one rank, planned and measured. reserved is the caching allocator's, so None on a CPU.

    process is what the driver shows for the process on a GPU, and the peak resident set (RSS) on a CPU.
    num_tokens_measured_step: of the one step that is measured on a CPU; None on a GPU.
    """

    rank: int
    host: str
    planned_allocated_bytes: int
    measured_allocated_bytes: int
    planned_reserved_bytes: int | None
    measured_reserved_bytes: int | None
    planned_process_bytes: int
    measured_process_bytes: int | None
    measured_rss_bytes: int
    num_tokens_measured_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ran, how it ended, what it learnt and how fast, and what its memory was planned to be and was.

    Steps, losses and rates are the newest known: a run that did not finish has those it got to. planned_by is the
    instrument that made the plan. Samples are sequences of the global batch; tokens are counted as
    TrainMetrics.tokens_per_s counts them. num_tokens_planned_step: what the plan counts for each rank in a step.
    """

    run_id: str
    run_dir: str
    attempt: int
    status: Status
    exit_code: int
    first_cause: str
    wrapper: str | None
    num_parameters: int | None
    num_trainable_parameters: int | None
    num_train_samples: int | None
    num_eval_samples: int | None
    num_truncated_samples: int | None
    step: int
    num_steps: int | None
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss_after: float | None
    samples_per_s: float | None
    tokens_per_s: float | None
    train_time_s: float | None
    result: str | None
    checkpoint: str | None
    planned_by: str
    num_tokens_planned_step: int
    memory: tuple[RankMemory, ...]


def make_report(
    outcome: Outcome, plan: MemoryPlan, started: Started | None, metrics: Sequence[Metrics], *, run_id: str
) -> Report:
    """Gather what the markers, the plan and the metrics say about one attempt."""
    done = outcome.finished
    last = max((m for m in metrics if isinstance(m, TrainMetrics)), key=lambda m: m.step, default=None)
    before, after = _evaluations(metrics)
    return Report(
        run_id=run_id,
        run_dir=str(outcome.run_dir),
        attempt=outcome.attempt,
        status=outcome.status,
        exit_code=outcome.exit_code,
        first_cause=outcome.first_cause,
        wrapper=started.wrapper if started else None,
        num_parameters=started.num_parameters if started else None,
        num_trainable_parameters=started.num_trainable_parameters if started else None,
        num_train_samples=started.num_train_samples if started else None,
        num_eval_samples=started.num_eval_samples if started else None,
        num_truncated_samples=started.num_truncated_samples if started else None,
        step=done.num_steps if done else outcome.stopped.step if outcome.stopped else last.step if last else 0,
        num_steps=done.num_steps if done else last.num_steps if last else None,
        train_loss=done.train_loss if done else last.loss if last else None,
        eval_loss_before=done.eval_loss_before if done else before,
        eval_loss_after=done.eval_loss_after if done else after,
        samples_per_s=done.samples_per_s if done else last.samples_per_s if last else None,
        tokens_per_s=done.tokens_per_s if done else last.tokens_per_s if last else None,
        train_time_s=done.train_time_s if done else None,
        result=done.result if done else None,
        checkpoint=outcome.stopped.checkpoint if outcome.stopped else None,
        planned_by=plan.instrument,
        num_tokens_planned_step=num_tokens_planned_step(plan.spec),
        memory=tuple(rank_memory(plan, m) for m in sorted(outcome.measurements, key=lambda m: m.rank)),
    )


def _evaluations(metrics: Sequence[Metrics]) -> tuple[float | None, float | None]:
    """Held-out loss before the first step, and at the newest evaluation after it."""
    by_step = {m.step: m.loss for m in metrics if isinstance(m, EvalMetrics)}
    newest = max((step for step in by_step if step > 0), default=None)
    return by_step.get(0), None if newest is None else by_step[newest]


def rank_memory(plan: MemoryPlan, measured: RankMeasurement) -> RankMemory:
    """One rank's plan beside its measurement, each number against what was measured in the same way."""
    rank = next((r for r in plan.ranks if measured.rank in r.ranks), plan.worst_rank)
    on_gpu = measured.reserved_bytes is not None
    reserve_bytes = plan.reserved_bytes - plan.allocated_bytes
    return RankMemory(
        rank=measured.rank,
        host=measured.host,
        planned_allocated_bytes=rank.allocated_bytes if on_gpu else step_bytes(rank),
        measured_allocated_bytes=measured.allocated_bytes,
        planned_reserved_bytes=rank.allocated_bytes + reserve_bytes if on_gpu else None,
        measured_reserved_bytes=measured.reserved_bytes,
        planned_process_bytes=rank.allocated_bytes + reserve_bytes + rank.outside_bytes,
        measured_process_bytes=measured.process_bytes if on_gpu else measured.rss_bytes,
        measured_rss_bytes=measured.rss_bytes,
        num_tokens_measured_step=measured.num_tokens_measured_step,
    )


def num_tokens_planned_step(spec: JobSpec) -> int:
    """Tokens of one rank in one optimizer step, were every sequence as long as is planned for."""
    return spec.micro_batch * spec.gradient_accumulation * spec.train.sequence_length


def step_bytes(rank: RankPlan) -> int:
    """Planned peak of tensors over the first step and those like all that follow."""
    return max(rank.allocated_bytes_in(phase) for phase in STEP_PHASES)
