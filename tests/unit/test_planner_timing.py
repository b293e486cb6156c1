"""The estimate of a step's time: exact counts by hand, what must always hold, and measured times that are public."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.devices import listed_devices
from launcher.models import model_shape
from launcher.planner.estimate import Estimator, micro_batches
from launcher.planner.timing import StepTime, speeds, step_time
from launcher.planner.timing.operations import dequantised_bytes, operations
from launcher.planner.timing.transfers import transfers
from launcher.planner.workload import Workload
from launcher.spec import JobSpec
from tests.planner_jobs import CPU, TINY_CONFIG, job
from tests.unit.test_planner_properties import options


def workload(spec: JobSpec) -> Workload:
    return Estimator(model_shape(spec.model.config)).workload(spec)


def timed(spec: JobSpec) -> StepTime:
    return step_time(workload(spec))


def part(found: StepTime, name: str) -> float:
    return sum(p.seconds for p in found.parts if p.name == name)


def test_operations_by_hand() -> None:
    """Hidden 64, MLP 192, 4 heads and 2 of keys (of 16), 3 layers, 256 words; a token sees 50 others on average."""
    tokens, products = 2 * 100, 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
    attention = 4 * tokens * 50 * 64 * 3
    full = operations(workload(job(TINY_CONFIG, method="full", micro_batch=2, sequence_length=100)))
    assert full.blocks == 2 * tokens * products + attention
    assert full.head == 2 * tokens * 256 * 64
    assert full.recomputed == full.blocks
    assert full.trained == 2 * tokens * (products + 256 * 64)
    lora = operations(workload(job(TINY_CONFIG, rank=4, micro_batch=2, sequence_length=100, checkpointing="none")))
    adapters = 3 * 4 * (4 * 64 + 64 + 64 + 32 + 32 + 64 + 3 * (64 + 192) - 64)
    assert lora.trained == 2 * tokens * adapters
    assert lora.recomputed == 0


def test_a_mixture_computes_only_the_chosen_experts() -> None:
    """Mixtral 8x7B: about 13e9 of its 47e9 parameters are active, as its paper says (arXiv:2401.04088)."""
    found = operations(workload(job("mixtral-8x7b", sequence_length=8, micro_batch=1, rank=1, targets=("q_proj",))))
    active = (found.blocks + found.head) / (2 * 8)
    assert 12.6e9 < active < 12.9e9


def test_checkpointing_costs_a_forward_pass_of_the_blocks() -> None:
    """8 instead of 6 operations a parameter, or 6 instead of 4 where the weights are frozen, the head aside."""
    for method, expected in (("full", 8 / 6), ("lora", 6 / 4)):
        recomputed, kept = (
            operations(workload(job(method=method, checkpointing=word, rank=1))).total for word in ("full", "none")
        )
        assert expected - 0.06 < recomputed / kept < expected


def test_selective_checkpointing_runs_the_wide_products_again() -> None:
    """Llama 3 8B without its adapters: gate, up and down projections of 4096 x 14336, 218.1e6 elements a layer."""
    found = operations(workload(job(checkpointing="selective", rank=1, targets=("q_proj",), sequence_length=8)))
    wide, layer = 3 * 4096 * 14336, 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert found.recomputed / found.blocks == pytest.approx(wide / layer, rel=1e-3)


def test_what_is_sent_by_hand() -> None:
    """Llama 3 8B in bf16_mixed on 4 ranks, every parameter trained: fp32 gradients under DDP, bf16 under DeepSpeed."""
    numel, ranks = 8_030_261_248, 4
    others = 3 / 4

    def sent(shard: str, offload: str = "none", **more: Any) -> Any:
        return transfers(workload(job(method="full", shard=shard, offload=offload, gpus=ranks, **more)))

    assert sent("ddp").step_reduced == 2 * others * 4 * numel
    assert (sent("zero2").reduced, sent("zero2").step_reduced) == (others * 2 * numel, others * 2 * numel)
    assert (sent("zero3").gathered, sent("zero3").reduced) == (2 * others * 2 * numel, others * 2 * numel)
    assert (sent("fsdp").gathered, sent("fsdp").reduced) == (2 * others * 2 * numel, others * 4 * numel)
    assert sent("fsdp", knobs={"reshard_after_forward": False}).gathered == others * 2 * numel
    offloaded = sent("zero3", "all")
    assert (offloaded.pulled, offloaded.pushed) == (2 * 2 * numel / ranks, 2 * numel / ranks)
    assert offloaded.host_stepped == numel / ranks
    assert sent("ddp").host_stepped == sent("zero3").pulled == 0


def test_dequantisation_by_hand() -> None:
    """Forward, recomputation, backward: half a byte read and two written for each of the linear layers' elements."""
    work = workload(job(method="qlora"))
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert dequantised_bytes(work) == 3 * 2.5 * linears
    assert dequantised_bytes(workload(job(method="lora"))) == 0


@given(options(), st.integers(16, 200), st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=60)
def test_a_larger_micro_batch_is_never_slower(chosen: dict[str, Any], length: int, gpus: int) -> None:
    """The search for what fits relies on it."""
    spec = job(TINY_CONFIG, gpus=gpus, sequence_length=length, micro_batch=None, global_batch=16 * gpus, **chosen)
    times = [timed(spec.with_micro_batch(size)).seconds for size in micro_batches(spec)]
    for smaller, larger in itertools.pairwise(times):
        assert larger <= smaller * (1 + 1e-9)


@given(options(), st.integers(1, 4), st.integers(16, 120))
@settings(deadline=None, max_examples=60)
def test_every_part_takes_time_and_has_a_source(chosen: dict[str, Any], micro_batch: int, length: int) -> None:
    found = timed(
        job(
            TINY_CONFIG, gpus=2, sequence_length=length, micro_batch=micro_batch, global_batch=4 * micro_batch, **chosen
        )
    )
    assert found.tokens == 4 * micro_batch * length
    assert found.seconds == sum(p.seconds for p in found.parts) > 0
    assert all(p.seconds > 0 and p.source.startswith(("measured: ", "published: ", "assumed: ")) for p in found.parts)


def test_offloading_costs_time_where_it_is_waited_for() -> None:
    common = {"method": "full", "gpus": 8, "global_batch": 8, "sequence_length": 512, "device": "rtx4090"}
    plain = timed(job(shard="zero3", **common))
    states = timed(job(shard="zero3", offload="optimizer", **common))
    both = timed(job(shard="zero3", offload="all", **common))
    assert plain.seconds < states.seconds < both.seconds
    assert part(states, "optimizer on the host") == pytest.approx(8.03e9 * 0.22e-9, rel=0.01)


def test_several_nodes_are_as_fast_as_their_network() -> None:
    one = timed(job(method="full", shard="zero3", gpus=8, global_batch=16))
    two = timed(job(method="full", shard="zero3", gpus=8, nodes=2, global_batch=16))
    name = "exchange in each pass"
    # 450 x 0.8 against 50 GB/s; each of two passes against each of one, and 15/16 against 7/8 of the weights.
    a100_link = 300 * 0.8
    assert part(two, name) / part(one, name) == pytest.approx(a100_link / 50 * (15 / 16) / (7 / 8) / 2)


def test_every_listed_card_has_speeds() -> None:
    assert {card.name for card in listed_devices()} == set(speeds.CARDS)
    assert all(found.source for found in speeds.CARDS.values())
    assert speeds.speeds_of(CPU) is speeds.CPU_RANK


# github.com/QwenLM/Qwen README, "Profiling of Memory and Speed": seconds for 8 accumulated passes of one sequence on
# each A100-SXM4-80GB, flash attention, LoRA of rank 64 with activation checkpointing (finetune/finetune_lora_*.sh).
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QWEN = {
    "1.8B": (2048, 5504, 24, 16, 151936, "ddp", 1, (1.0, 1.0, 1.1, 1.7, 3.3, 6.8)),
    "7B": (4096, 11008, 32, 32, 151936, "ddp", 1, (1.2, 1.5, 2.8, 5.2, 10.1, 21.3)),
    "14B": (5120, 13696, 40, 40, 152064, "ddp", 1, (1.6, 2.4, 4.4, 8.4, 17.0, 36.0)),
    "72B": (8192, 24576, 80, 64, 152064, "zero3", 4, (17.6, 20.5, 29.4, 45.7, 83.4, 161.5)),
}


@pytest.mark.parametrize("name", QWEN)
def test_public_times_are_met_within_a_half(name: str) -> None:
    """Only the launch time of short passes comes from this table; the rest are other sources' rates."""
    hidden, width, layers, heads, vocab, shard, gpus, measured = QWEN[name]
    config = {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocab,
        "max_position_embeddings": 32768, "tie_word_embeddings": False,
    }  # fmt: skip
    for length, seconds in zip(LENGTHS, measured, strict=True):
        planned = timed(
            job(
                config,
                shard=shard,
                gpus=gpus,
                rank=64,
                global_batch=8 * gpus,
                micro_batch=1,
                sequence_length=length,
                attention="flash_attention_2",
            )
        ).seconds
        assert 1 / 1.5 < planned / seconds < 1.5, (length, planned, seconds)
