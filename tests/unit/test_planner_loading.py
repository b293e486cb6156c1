"""What loading and wrapping hold, against traces and by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.grid.cases import grid
from benchmarks.grid.compare import compare, planned_bytes
from benchmarks.grid.recorded import read_traces
from launcher.planner.ranks import plan_of_rank
from launcher.planner.sharding.broadcast import broadcast_bytes
from launcher.planner.sharding.order import in_order
from launcher.planner.types import Phase
from launcher.spec import JobSpec
from tests.planner_jobs import estimate, job, model_config, only_rank, term


def two_layers(model: str, **options: Any) -> JobSpec:
    """A job of a model cut to two layers."""
    return job({**model_config(model), "num_hidden_layers": 2}, **options)


def test_a_model_lists_a_modules_parameters_before_its_adapters() -> None:
    """As torch does, and of stacked experts the adapters of both projections after both."""
    attention, experts = (
        [p.name.removeprefix(module) for p in in_order(block) if p.name.startswith(module)]
        for model, module in (("qwen2.5-7b", "self_attn.q_proj."), ("mixtral-8x7b", "mlp.experts."))
        for block in estimate(job(model, method="lora", gpus=2)).work.inventory.blocks
    )
    factors = ["lora_A.default.weight", "lora_B.default.weight"]
    assert attention == ["weight", "bias", *factors]
    assert experts == ["gate_up_proj", "down_proj", *(f"base_layer.{name}" for name in factors), *factors]


def test_ddp_sends_a_quantised_models_values_beside_its_biases_piece() -> None:
    """Qwen2.5-7B on two layers: 4-bit values come first, then biases, norms and head, then adapters."""
    work = estimate(two_layers("qwen2.5-7b", method="qlora", shard="ddp", gpus=2)).work
    biases_norms = 2 * (3_584 + 2 * 512 + 2 * 3_584) + 3_584
    assert broadcast_bytes(work) == 466_092_032 // 2 + 2 * (biases_norms + 152_064 * 3_584)


def test_loading_and_wrapping_are_as_traced_in_every_job_of_the_grid() -> None:
    traces = read_traces()
    compared = [compare(case, traces[case.name], 0) for case in grid() if case.name in traces]
    out = {
        (one.case.model, one.case.layers, phase)
        for one in compared
        for phase in (Phase.LOAD, Phase.WRAP)
        if abs(one.by_phase[phase]) > 0.005
    }
    assert len(compared) > 200
    assert out == set()


@pytest.mark.parametrize(
    ("model", "options", "traced_load", "traced_wrap"),
    [
        ("mistral-7b", {"method": "qlora", "shard": "ddp", "quant_type": "int8"}, 1_153_761_280, 1_350_992_384),
        ("mixtral-8x7b", {"method": "qlora", "shard": "zero3"}, 6_249_847_328, 7_047_289_248),
        ("llama3-8b", {"method": "lora", "shard": "fsdp", "offload": "all"}, 0, 1_576_009_728),
        ("llama3-8b", {"method": "lora", "shard": "zero3", "rank": 512}, 2_537_574_912, 1_906_332_161),
        ("qwen2.5-1.5b", {"method": "lora", "shard": "zero3", "offload": "all"}, 700_121_600, 5_149_184),
        ("qwen2.5-1.5b", {"method": "qlora", "shard": "zero3", "offload": "all"}, 541_456_040, 517_703_416),
    ],
)
def test_loading_and_wrapping_are_as_traced_in_jobs_beside_the_grid(
    model: str, options: dict[str, Any], traced_load: int, traced_wrap: int
) -> None:
    plan = plan_of_rank(estimate(two_layers(model, gpus=2, sequence_length=512, **options)).work, 0)
    found = planned_bytes(plan, Phase.LOAD), planned_bytes(plan, Phase.WRAP)
    assert found == pytest.approx((traced_load, traced_wrap), rel=0.0002)


def test_the_last_layers_largest_weight_is_quantised_before_attention_is_loaded() -> None:
    """Mistral-7B: up_proj in bf16 with two fp32 values a block, in the place of attention, adapters and the two norms
    that come after it by name."""
    rank = only_rank(two_layers("mistral-7b", method="qlora", rank=1))
    hidden, numel = 4096, 14336 * 4096
    attention = [hidden * hidden] * 2 + [hidden * 1024] * 2
    constants = sum(n // 64 + 4 * n // (64 * 256) + 1092 for n in attention)
    adapters = term(rank, "LoRA adapters").size_bytes
    norms = 2 * 2 * hidden
    later = sum(attention) // 2 + constants + adapters + norms
    assert term(rank, "weight being quantised").size_bytes == 2 * numel + 2 * 4 * numel // 64 - later


def test_a_cpu_reads_what_it_quantises_from_the_file() -> None:
    rank = only_rank(two_layers("mistral-7b", method="qlora", rank=1, device="cpu"))
    assert "weight being quantised" not in {t.name for t in rank.terms}
