"""Choosing the micro batch, and what is proposed when a job does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from launcher.devices import listed_devices
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.cards import can_compute
from launcher.planner.estimate import Estimator
from launcher.planner.fit import suggestions
from launcher.planner.fit.altering import DEFAULT_LORA
from launcher.planner.fit.equivalent import can_shard
from launcher.planner.plan import equivalents, make_plan
from launcher.planner.types import MemoryPlan, Verdict
from launcher.spec import DeviceSpec, JobSpec, Offload, ShardKind
from launcher.units import GIB
from tests.composed import spec_of
from tests.planner_jobs import ANY, estimate, job, model_config

CARDS = listed_devices()


def plan(spec: JobSpec) -> MemoryPlan:
    return make_plan(spec, CARDS)


def test_micro_batch_is_the_largest_that_fits() -> None:
    found = plan(job(micro_batch=None, global_batch=48))
    chosen = found.spec.micro_batch
    assert found.verdict is Verdict.FITS
    assert 48 % chosen == 0
    larger = min(size for size in range(chosen + 1, 49) if 48 % size == 0)
    assert not estimate(found.spec.with_micro_batch(larger)).fits
    assert found.spec.gradient_accumulation * chosen == 48


def test_micro_batch_is_one_where_nothing_fits_or_no_card_is_named() -> None:
    assert plan(job(micro_batch=None, method="full", device="t4", precision="fp16_mixed")).spec.micro_batch == 1
    assert plan(job(micro_batch=None, device="any")).spec.micro_batch == 1


def test_a_named_micro_batch_stays() -> None:
    assert plan(job(micro_batch=4, device="rtx4090")).spec.micro_batch == 4


def test_no_card_names_the_smallest() -> None:
    found = plan(job(method="qlora", micro_batch=None, device=ANY))
    assert found.verdict is Verdict.NO_CARD
    assert found.capacity_bytes is None
    assert found.smallest_card is not None
    name, _, count = found.smallest_card.partition(" x ")
    assert count == "1"
    (smallest,) = (card for card in CARDS if card.name == name)
    assert estimate(dataclasses.replace(found.spec, device=smallest)).fits
    for card in CARDS:
        if can_compute(card, found.spec) and card.memory_bytes < smallest.memory_bytes:
            assert not estimate(dataclasses.replace(found.spec, device=card)).fits


NOT_FITTING = [
    ("llama3-8b", {"method": "full", "device": "a100-80g"}),
    ("llama3-8b", {"method": "full", "device": "a100-80g", "gpus": 4}),
    ("llama3-8b", {"method": "lora", "device": "rtx4090", "micro_batch": 8}),
    ("llama3-8b", {"method": "lora", "device": "a100-80g", "checkpointing": "none", "micro_batch": 16}),
    ("llama2-13b", {"method": "full", "device": "a100-40g", "gpus": 8, "shard": "zero2"}),
    ("llama3.1-70b", {"method": "lora", "device": "a100-80g", "gpus": 2, "shard": "zero3"}),
    ("qwen2.5-7b", {"method": "full", "device": "rtx4090", "gpus": 8, "optimizer": "adamw_8bit"}),
    ("smollm2-1.7b", {"method": "full", "device": "cpu", "gpus": 2, "precision": "fp32"}),
]


@pytest.mark.parametrize(("model", "options"), NOT_FITTING)
def test_suggestions_compose_and_fit(model: str, options: dict) -> None:
    """Typed on the command line, each is accepted, and planned again it fits."""
    spec = job(model, **{"micro_batch": None} | options)
    found = plan(spec)
    assert found.verdict is not Verdict.FITS
    assert len(found.suggestions) <= 3
    assert [s.changes_training for s in found.suggestions] == sorted(s.changes_training for s in found.suggestions)
    for suggestion in found.suggestions:
        typed = command_line(model, spec, options)
        changed = make_plan(spec_of(*typed, *suggestion.overrides), CARDS)
        assert changed.verdict is Verdict.FITS, suggestion
        if spec.device.kind == "cuda":
            assert changed.process_bytes == suggestion.process_bytes, suggestion


def command_line(model: str, spec: JobSpec, options: dict) -> list[str]:
    """The overrides that mean a job of these tests."""
    return [
        "mode=plan",
        f"model={model}",
        f"method={spec.method.kind}",
        f"shard={spec.shard.kind}",
        f"device={spec.device.name}",
        f"gpus={spec.gpus_per_node}",
        f"train.precision={spec.train.precision}",
        f"train.global_batch={spec.train.global_batch}",
        f"train.micro_batch={options.get('micro_batch', 'auto')}",
        f"train.sequence_length={spec.train.sequence_length}",
        f"train.activation_checkpointing={spec.train.activation_checkpointing}",
        f"train.attention={spec.train.attention}",
        f"train.optimizer={spec.train.optimizer}",
    ]


def test_what_keeps_the_training_comes_first() -> None:
    spec = job(device="a100-80g", checkpointing="none", micro_batch=16)
    found = plan(spec)
    assert found.suggestions[0].overrides == ("train.micro_batch=2",)
    assert not estimate(spec.with_micro_batch(4)).fits
    assert equivalents(found)[0] == ("train.micro_batch=2",)


def test_nothing_cheaper_is_repeated_with_more() -> None:
    for model, options in NOT_FITTING:
        kept = [set(s.overrides) for s in plan(job(model, **{"micro_batch": None} | options)).suggestions]
        assert not [(a, b) for i, a in enumerate(kept) for b in kept[i + 1 :] if a <= b]


def test_a_fitting_job_needs_no_suggestions() -> None:
    found = plan(job(method="qlora"))
    assert found.verdict is Verdict.FITS
    assert found.suggestions == ()
    assert found.smallest_card is None
    assert equivalents(found) == ()


def test_hopeless_job_names_the_smallest_card() -> None:
    """A card so small that nothing fits: the answer is another card."""
    spec = job(method="full", shard="zero3", gpus=2, micro_batch=1)
    tiny = dataclasses.replace(spec.device, name="toy", memory_bytes=GIB)
    found = plan(dataclasses.replace(spec, device=tiny))
    assert found.verdict is Verdict.DOES_NOT_FIT
    assert found.suggestions == ()
    name, _, count = str(found.smallest_card).partition(" x ")
    (card,) = (card for card in CARDS if card.name == name)
    assert estimate(dataclasses.replace(spec, device=card, gpus_per_node=int(count))).fits


def test_verdict_between_the_bounds() -> None:
    found = plan(job())
    for capacity, expected in (
        (found.process_high_bytes, Verdict.FITS),
        (found.process_high_bytes - 1, Verdict.TOO_CLOSE),
        (found.process_low_bytes, Verdict.TOO_CLOSE),
        (found.process_low_bytes - 1, Verdict.DOES_NOT_FIT),
    ):
        device = dataclasses.replace(found.spec.device, memory_bytes=capacity)
        assert plan(dataclasses.replace(found.spec, device=device)).verdict is expected


def test_sharding_rules() -> None:
    eight_bit = job(optimizer="adamw_8bit", gpus=2)
    assert not can_shard(eight_bit, ShardKind.FSDP, Offload.NONE)
    assert not can_shard(eight_bit, ShardKind.ZERO3, Offload.OPTIMIZER)
    assert can_shard(eight_bit, ShardKind.ZERO3, Offload.NONE)
    alone = job()
    assert not can_shard(alone, ShardKind.FSDP, Offload.NONE)
    assert can_shard(alone, ShardKind.FSDP, Offload.ALL)
    assert not can_shard(job(device="cpu", gpus=2), ShardKind.ZERO3, Offload.ALL)


def test_default_adapter_is_that_of_the_configuration() -> None:
    conf = yaml.safe_load((conf_dir() / "method" / "lora.yaml").read_text())
    assert (conf["rank"], conf["alpha"], conf["dropout"], conf["bias"]) == (
        DEFAULT_LORA.rank,
        DEFAULT_LORA.alpha,
        DEFAULT_LORA.dropout,
        DEFAULT_LORA.bias,
    )
    assert DEFAULT_LORA.targets == (conf["targets"],)


def test_a_large_model_on_many_ranks() -> None:
    found = plan(job("llama3.1-405b", method="full", shard="fsdp", gpus=8, nodes=8, global_batch=64, device="h200"))
    assert sum(len(rank.ranks) for rank in found.ranks) == 64
    estimator = Estimator(model_shape(model_config("llama3.1-405b")))
    assert suggestions(estimator, found.spec, estimator.best(found.spec)) == found.suggestions


def test_a_card_without_bf16_is_not_proposed() -> None:
    t4: DeviceSpec = next(card for card in CARDS if card.name == "t4")
    assert not can_compute(t4, job())
    assert can_compute(t4, job(precision="fp16_mixed"))
