"""What blocks need in their forward pass, against counts of what the libraries' own code holds."""

from __future__ import annotations

import pytest

from benchmarks.grid.compare import planned_bytes
from launcher.planner import attention, block_forward
from launcher.planner.types import Phase
from tests.planner_jobs import estimate, job, model_config, only_rank, term

HIDDEN, INNER = 4_096, 14_336


def running(**options: object) -> int:
    """Bytes a token of a block of Llama 3 8B of which nothing is kept."""
    work = estimate(job(gpus=8, global_batch=8, **options)).work  # type: ignore[arg-type]
    return block_forward.working_bytes(work, work.inventory.blocks[0])


def test_an_adapted_layer_has_three_tensors_of_its_width() -> None:
    """Up projection: beside the activated gate its answer, its adapter's, and that scaled; a full one's MLP has three
    in all. Adapters in fp32 under autocast have their input in fp32 besides."""
    assert running(method="full", shard="zero2") == 2 * 2 * HIDDEN + 3 * 2 * INNER
    assert running(method="lora", shard="zero2") == 2 * 2 * HIDDEN + 4 * 2 * INNER
    assert running(method="lora", shard="ddp") == 2 * 2 * HIDDEN + 4 * 2 * INNER + 4 * HIDDEN
    assert running(method="lora", shard="zero2", targets=("q_proj",)) == running(method="full", shard="zero2")


def test_one_layer_for_gate_and_up_has_answers_as_wide_as_both() -> None:
    work = estimate(job("phi3-mini", method="lora", shard="zero2", gpus=8, global_batch=8)).work
    assert block_forward.working_bytes(work, work.inventory.blocks[0]) == 2 * 2 * 3_072 + 3 * 2 * 2 * 8_192


def test_a_dequantised_weight_stands_beside_the_gate_and_the_answer_alone() -> None:
    """Not beside the three of the adapter: a short batch peaks with the weight, a long one with the adapter."""
    for tokens, name in ((512, "dequantised weight"), (8192, "LoRA adapters")):
        spec = job(method="qlora", shard="zero2", gpus=8, global_batch=8, micro_batch=1, sequence_length=tokens)
        (rank,) = [only_rank(spec)]
        assert any(t.name.startswith(name) and Phase.FORWARD in t.phases for t in rank.terms)
        has_weight = any(t.name.startswith("dequantised") and Phase.FORWARD in t.phases for t in rank.terms)
        assert has_weight is (tokens == 512)


def test_softmax_reads_a_copy_of_bf16_scores() -> None:
    """Masked scores, their fp32 copy and the softmax in fp32; fp16 is read by CUDA's kernel itself."""
    scores = {}
    for precision in ("bf16_mixed", "fp16_mixed"):
        options = {"method": "lora", "shard": "zero2", "gpus": 8, "global_batch": 8, "precision": precision}
        work = estimate(job("gemma2-2b", attention="eager", sequence_length=2048, **options)).work  # type: ignore[arg-type]
        scores[precision] = attention.forward_working_bytes(work)
    assert scores["bf16_mixed"] - scores["fp16_mixed"] == 4 * 8 * 2048


@pytest.mark.parametrize(
    ("model", "method", "shard", "options", "traced_bytes"),
    [
        ("llama3-8b", "lora", "ddp", {"micro_batch": 2, "checkpointing": "none"}, 5_323_500_000),
        ("llama3-8b", "qlora", "zero2", {"micro_batch": 2, "checkpointing": "none"}, 4_051_000_000),
        ("qwen3-4b", "lora", "ddp", {"micro_batch": 4, "loss": "chunked"}, 2_104_700_000),
    ],
)
def test_forward_peaks_are_those_of_traces(
    model: str, method: str, shard: str, options: dict[str, object], traced_bytes: int
) -> None:
    """Without checkpointing also the final norm; over a frozen embedding the first norm keeps nothing."""
    config = model_config(model) | {"num_hidden_layers": 2}
    micro_batch = options["micro_batch"]
    spec = job(
        config, method=method, shard=shard, gpus=8, sequence_length=2048, global_batch=8 * micro_batch, **options
    )  # type: ignore[arg-type, operator]
    assert planned_bytes(only_rank(spec), Phase.FORWARD) == pytest.approx(traced_bytes, rel=0.003)


def test_the_first_norm_over_a_frozen_embedding_keeps_nothing() -> None:
    spec = job(method="lora", shard="zero2", gpus=8, global_batch=8, checkpointing="none")
    kept = term(only_rank(spec), "saved activations")
    assert "- 16,388 B" in kept.formula
