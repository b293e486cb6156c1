"""What other loops and older packages do, in exact bytes."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.models import model_shape
from launcher.planner.estimate import Estimate, Estimator
from launcher.planner.practice import OURS, Practice, drops_half_logits, shifts_logits_by_copy
from launcher.planner.types import Phase, Verdict
from launcher.planner.verdict import Need, confidence, verdict
from launcher.spec import Dtype
from tests.planner_jobs import TINY_CONFIG, job


def planned(practice: Practice, **changes: object) -> Estimate:
    spec = job(TINY_CONFIG, micro_batch=4, sequence_length=128, **changes)  # type: ignore[arg-type]
    return Estimator(model_shape(spec.model.config), practice).estimate(spec)


def in_phase(found: Estimate, phase: Phase) -> int:
    (rank,) = found.ranks
    return rank.allocated_bytes_in(phase)


LOGITS = 4 * 128 * TINY_CONFIG["vocab_size"]


def test_versions_of_transformers() -> None:
    assert [shifts_logits_by_copy((4, minor)) for minor in (45, 48, 49)] == [True, True, False]
    assert [drops_half_logits((4, minor)) for minor in (45, 46)] == [True, False]


@pytest.mark.parametrize(
    ("practice", "more"),
    [
        (Practice(shifted_logits_copy=True), 4 * LOGITS),
        (Practice(drops_half_logits=True), -2 * LOGITS),
        (Practice(shifted_logits_copy=True, drops_half_logits=True), 2 * LOGITS),
    ],
)
def test_logits_on_their_way_to_the_loss(practice: Practice, more: int) -> None:
    assert in_phase(planned(practice), Phase.LOSS) - in_phase(planned(OURS), Phase.LOSS) == more


def test_outputs_that_a_loop_keeps() -> None:
    kept = in_phase(planned(Practice(keeps_outputs=True)), Phase.BACKWARD)
    assert kept - in_phase(planned(OURS), Phase.BACKWARD) == 2 * LOGITS
    wide = in_phase(planned(Practice(keeps_outputs=True, drops_half_logits=True)), Phase.BACKWARD)
    assert wide - in_phase(planned(OURS), Phase.BACKWARD) == 4 * LOGITS


def test_a_step_of_all_tensors_at_once() -> None:
    found = planned(Practice(foreach=True), method="full")
    more = in_phase(found, Phase.OPTIMIZER) - in_phase(planned(OURS, method="full"), Phase.OPTIMIZER)
    assert more == 4 * found.work.inventory.trained_numel


def test_a_quantised_model_prepared_by_peft() -> None:
    """Embedding, norms and head in fp32, and with them every activation between quantised layers."""
    found = planned(Practice(unquantised_dtype=Dtype.FLOAT32, autocast=False), method="qlora").work
    assert (found.residual_bytes, found.compute_bytes, found.logit_bytes, found.matmul_bytes) == (4, 4, 4, 2)
    trl = planned(Practice(norm_dtype=Dtype.FLOAT32), method="qlora").work
    assert (trl.residual_bytes, trl.compute_bytes, trl.logit_bytes, trl.matmul_bytes) == (4, 4, 2, 2)


def test_block_inputs_that_hooks_hold() -> None:
    """At the first block's turn, two hidden vectors a token for every block but two."""
    held = planned(Practice(holds_block_inputs=True), shard="fsdp", gpus=2, loss="chunked")
    names = {term.name: term.size_bytes for rank in held.ranks for term in rank.terms}
    layers, hidden = TINY_CONFIG["num_hidden_layers"], TINY_CONFIG["hidden_size"]
    assert names["gradients of earlier blocks' inputs"] == (layers - 2) * hidden * 2 * 4 * 128


def test_a_verdict_by_its_bounds() -> None:
    need = Need(reserved_bytes=100, process_bytes=110, least_bytes=105, low_bytes=95, high_bytes=120)
    assert [verdict(need, capacity) for capacity in (None, 94, 95, 119, 120)] == [
        Verdict.NO_CARD, Verdict.DOES_NOT_FIT, Verdict.TOO_CLOSE, Verdict.TOO_CLOSE, Verdict.FITS,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "percent"),
    [
        ({}, 5),
        ({"gpus": 8}, 8),
        ({"gpus": 8, "shard": "fsdp"}, 8),
        ({"gpus": 8, "shard": "zero3"}, 17),
        ({"device": "cpu"}, 12),
    ],
)
def test_how_sure_a_plan_is(changes: dict, percent: int) -> None:
    assert confidence(job(**changes)).percent == percent


def test_bounds_hold_what_is_shown() -> None:
    for shard, gpus in (("ddp", 1), ("fsdp", 8), ("zero2", 8), ("zero3", 8)):
        spec = job(shard=shard, gpus=gpus)
        need = Estimator(model_shape(spec.model.config)).estimate(spec).need
        assert need.low_bytes < need.least_bytes <= need.process_bytes < need.high_bytes, shard
        assert dataclasses.astuple(need) == tuple(int(value) for value in dataclasses.astuple(need))
