"""A plan by trace: traced phases as they are, the rest from the closed form; and the plan where the trace failed."""

from __future__ import annotations

import msgspec

from launcher.planner.plan import make_plan
from launcher.planner.traced import FAILED, INSTRUMENT, plan_by_trace
from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.summary import PhasePeak, Summary
from launcher.planner.types import MemoryPlan, Phase, TermKind, Verdict
from launcher.spec import JobSpec
from launcher.units import GIB, MIB
from tests.composed import spec_of

CUBLAS_BYTES = 32 * MIB  # of a Hopper card, which no trace sees
TRACED = (Phase.LOAD, Phase.WRAP, Phase.FIRST_STEP, Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)


def closed_form(*overrides: str) -> MemoryPlan:
    common = ("mode=plan", "model=llama3.1-8b", "method=lora", "shard=fsdp", "train.micro_batch=1")
    return make_plan(spec_of(*common, *overrides), ())


def summary(rank: int, backward_bytes: int) -> Summary:
    """Weights of 3 GiB in every phase, and activations that only the backward pass has."""
    return Summary(
        rank=rank,
        phases=tuple(
            PhasePeak(
                phase=phase,
                by_category={TermKind.WEIGHTS: 3 * GIB}
                | ({TermKind.ACTIVATIONS: backward_bytes} if phase is Phase.BACKWARD else {}),
            )
            for phase in TRACED
        ),
        reserved_bytes=3 * GIB + backward_bytes + GIB,
        least_capacity_bytes=3 * GIB + backward_bytes + GIB // 2,
        host_peak_bytes=0,
        versions={"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0"},
        assumptions=(),
        wall_s=1.0,
        peak_rss_bytes=0,
    )


def test_the_phases_of_a_traced_plan_are_those_of_the_trace() -> None:
    plan = closed_form("gpus=8", "device=h100-80g")
    made = plan_by_trace(plan, lambda _spec, rank: summary(rank, 20 * GIB), _no_complaint)
    assert made.instrument == INSTRUMENT
    for before, rank in zip(plan.ranks, made.ranks, strict=True):
        assert rank.ranks == before.ranks
        assert [rank.allocated_bytes_in(phase) for phase in TRACED] == [
            (23 if phase is Phase.BACKWARD else 3) * GIB + _cublas_bytes(phase) for phase in TRACED
        ]
        for phase in (Phase.EVALUATION, Phase.SAVE):
            assert rank.allocated_bytes_in(phase) == before.allocated_bytes_in(phase)
        assert rank.outside_bytes == before.outside_bytes
    outside = made.worst_rank.outside_bytes
    allocated, reserved = 23 * GIB + CUBLAS_BYTES, 24 * GIB + CUBLAS_BYTES
    assert made.allocated_bytes == allocated
    assert made.reserved_bytes == reserved
    assert made.process_bytes == reserved + outside
    assert made.least_capacity_bytes == allocated + GIB // 2 + outside
    assert made.process_low_bytes == allocated * 95 // 100 + outside
    assert made.process_high_bytes == max(reserved, (allocated + GIB // 2) * 105 // 100) + outside
    assert made.verdict is Verdict.FITS
    assert (made.checkpoint_bytes, made.result_bytes) == (plan.checkpoint_bytes, plan.result_bytes)


def test_weights_of_equal_size_are_one_term_with_its_phases_and_source() -> None:
    made = plan_by_trace(closed_form("gpus=8", "device=h100-80g"), lambda _s, rank: summary(rank, GIB), _no_complaint)
    (weights,) = [term for term in made.ranks[0].terms if term.kind is TermKind.WEIGHTS and term.size_bytes == 3 * GIB]
    assert weights.phases == TRACED
    assert weights.source == "trace of rank 0, torch 2.13.0, transformers 5.23.0, accelerate 1.15.0"


def test_a_trace_can_change_the_verdict() -> None:
    plan = closed_form("gpus=8", "device=h100-80g")
    assert plan.verdict is Verdict.FITS
    made = plan_by_trace(plan, lambda _spec, rank: summary(rank, 100 * GIB), _no_complaint)
    assert made.verdict is Verdict.DOES_NOT_FIT


def test_a_card_on_which_the_replay_survives_holds_the_job_though_more_would_be_reserved_on_a_larger_one() -> None:
    plan = closed_form("gpus=8", "device=rtx4090")  # 24 GB: 23.99 GiB as the driver reports it
    outside = plan.worst_rank.outside_bytes
    assert plan.capacity_bytes is not None
    activations = (plan.capacity_bytes - outside - CUBLAS_BYTES - 3 * GIB) * 90 // 100
    made = plan_by_trace(plan, lambda _spec, rank: summary(rank, activations), _no_complaint)
    assert 3 * GIB + activations + GIB + CUBLAS_BYTES < plan.capacity_bytes - outside
    assert made.verdict is Verdict.FITS
    # the same job, whose cache would grow to far more than the card
    much = msgspec.structs.replace(summary(0, activations), reserved_bytes=60 * GIB)
    made = plan_by_trace(plan, lambda _spec, _rank: much, _no_complaint)
    assert made.verdict is Verdict.FITS
    assert made.process_bytes == made.process_high_bytes == plan.capacity_bytes


def test_every_class_of_ranks_is_traced_and_the_worst_one_counts() -> None:
    plan = closed_form("gpus=7", "train.global_batch=7", "device=h100-80g", "method=full")
    firsts = [rank.ranks[0] for rank in plan.ranks]
    assert len(firsts) > 1
    asked: list[int] = []

    def summarise(spec: JobSpec, rank: int) -> Summary:
        asked.append(rank)
        return summary(rank, 40 * GIB if rank == firsts[-1] else 20 * GIB)

    made = plan_by_trace(plan, summarise, _no_complaint)
    assert asked == firsts
    assert made.allocated_bytes == 43 * GIB + CUBLAS_BYTES
    assert made.worst_rank.ranks[0] == firsts[-1]


def test_a_failed_trace_is_told_and_the_closed_form_answers_less_sure() -> None:
    plan = closed_form("gpus=8", "device=h100-80g")
    told: list[str] = []

    def fail(_spec: JobSpec, _rank: int) -> Summary:
        raise TraceFailed("the kernel has changed")

    made = plan_by_trace(plan, fail, told.append)
    assert told == ["the kernel has changed"]
    assert made.instrument == FAILED
    assert made.ranks == plan.ranks
    assert made.process_bytes == plan.process_bytes
    below = plan.process_bytes - plan.process_low_bytes
    assert below > 0
    assert made.process_low_bytes == plan.process_low_bytes - below
    assert made.process_high_bytes == plan.process_high_bytes + below


def _cublas_bytes(phase: Phase) -> int:
    return 0 if phase in (Phase.LOAD, Phase.WRAP) else CUBLAS_BYTES


def _no_complaint(reason: str) -> None:
    raise AssertionError(reason)
