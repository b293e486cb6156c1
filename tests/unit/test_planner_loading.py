"""What loading and wrapping hold, against the recorded traces of the grid and by hand."""

from __future__ import annotations

from launcher.planner.sharding.broadcast import broadcast_bytes
from launcher.planner.sharding.order import in_order
from tests.planner_jobs import estimate, job, model_config


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
    config = {**model_config("qwen2.5-7b"), "num_hidden_layers": 2}
    work = estimate(job(config, method="qlora", shard="ddp", gpus=2)).work
    biases_norms = 2 * (3_584 + 2 * 512 + 2 * 3_584) + 3_584
    assert broadcast_bytes(work) == 466_092_032 // 2 + 2 * (biases_norms + 152_064 * 3_584)
