"""The planner's terms against numbers worked out by hand or published."""

from __future__ import annotations

import pytest

from launcher.planner import loss, optimizer, quantisation
from launcher.planner.sharding import fsdp, rows, zero2, zero3_gathered
from launcher.planner.types import Phase, TermKind
from launcher.spec import Dtype, Optimizer
from launcher.units import MIB
from tests.planner_jobs import TINY_CONFIG, estimate, job, only_rank, term

LLAMA3_8B = 8_030_261_248
MISTRAL_7B = 7_241_732_096


def test_pure_bf16_full_fine_tuning_is_four_halves_a_parameter() -> None:
    """Weights, gradients and two moments in bf16: 8 bytes a parameter, and one step counter a tensor.

    The public run with the foreach optimizer peaks at 72,434,837,504 B, which is 10 B a parameter and 17 MB; the
    fused optimizer that the job uses saves one of the five.
    """
    rank = only_rank(job("mistral-7b", method="full", precision="bf16_pure", global_batch=1, attention="sdpa"))
    num_tensors = 3 + 32 * 9
    held = [t for t in rank.terms if Phase.OPTIMIZER in t.phases and t.kind is not TermKind.OUTSIDE]
    states = term(rank, "optimizer states")
    assert states.size_bytes == 4 * MISTRAL_7B + 4 * num_tensors
    assert sum(t.size_bytes for t in held if t.kind is not TermKind.WORKSPACES) == 8 * MISTRAL_7B + 4 * num_tensors
    with_foreach = 10 * MISTRAL_7B
    assert pytest.approx(with_foreach, rel=0.0003) == 72_434_837_504


@pytest.mark.parametrize(("double_quant", "bits"), [(True, 4.127), (False, 4.5)])
def test_bits_of_a_four_bit_weight(double_quant: bool, bits: float) -> None:
    numel = 4096 * 14336
    stored = quantisation.packed_bytes(numel) + quantisation.constants_bytes(numel, double_quant=double_quant)
    assert 8 * stored / numel == pytest.approx(bits, abs=0.0005)


def test_double_quantisation_constants_by_hand() -> None:
    # 4096 * 4096 / 64 = 262,144 int8 scales; / 256 = 1,024 fp32; 16 and 256 fp32 codes; one fp32 offset.
    assert quantisation.constants_bytes(4096 * 4096, double_quant=True) == 262_144 + 4_096 + 64 + 1_024 + 4
    assert quantisation.constants_bytes(4096 * 4096, double_quant=False) == 4 * 262_144 + 64


def test_an_8_bit_base_by_hand() -> None:
    """A byte a weight, a fp32 scale a row; on CUDA int8 products, with int32 sums and fp16 results of all outputs."""
    rank = only_rank(job("llama3-8b", method="qlora", quant_type="int8", micro_batch=2, sequence_length=1024))
    per_layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336
    assert term(rank, "int8 weights").size_bytes == 32 * per_layer
    rows = 2 * 4096 + 2 * 1024 + 2 * 14336 + 4096
    assert term(rank, "quantisation constants").size_bytes == 32 * rows * 4
    assert term(rank, "int8 product").size_bytes == (4096 + 6 * 14336) * 2048


def test_8_bit_layers_keep_their_inputs_unless_checkpoints_are_reentrant() -> None:
    """Attention's input, its result, the MLP's input and the down projection's, in bf16, in each of 32 layers."""
    full, reentrant = (
        only_rank(job("llama3-8b", method="qlora", quant_type="int8", checkpointing=mode, sequence_length=1024))
        for mode in ("full", "reentrant")
    )
    extra = term(full, "kept by earlier blocks").size_bytes - term(reentrant, "kept by earlier blocks").size_bytes
    assert extra == 1024 * 32 * 2 * (4096 + 4096 + 4096 + 14336)


def test_selective_checkpointing_keeps_attention_by_hand() -> None:
    """Of each layer, besides its input: the kernel's result with its log-sum-exp; queries, keys, values, the output
    projection, and the first matrix of every adapter but the down projection's."""
    full, selective = (
        only_rank(job("llama3-8b", checkpointing=mode, rank=16, sequence_length=1024)) for mode in ("full", "selective")
    )
    extra = term(selective, "kept by earlier blocks").size_bytes - term(full, "kept by earlier blocks").size_bytes
    assert extra == 1024 * 32 * (2 * (4096 + 4096 + 2 * 1024 + 4096 + 6 * 16) + 32 * 4)


def test_optimizer_states_by_hand() -> None:
    assert optimizer.adamw_bytes(1000, Dtype.FLOAT32) == 8004
    assert optimizer.adamw_bytes(1000, Dtype.BFLOAT16) == 4004
    assert optimizer.adamw_8bit_bytes(4095) == 4095 * 8  # under 4,096 elements the moments stay fp32
    assert optimizer.adamw_8bit_bytes(4096) == 2 * (4096 + 16 * 4)
    assert optimizer.adamw_8bit_bytes(4097) == 2 * (4097 + 17 * 4)


def test_eight_bit_moments_take_about_two_bytes_a_parameter() -> None:
    numel = 4096 * 4096
    assert optimizer.adamw_8bit_bytes(numel) / numel == pytest.approx(2 + 8 / 256)


def test_paged_moments_leave_the_device_allocator() -> None:
    tensors = [(99_999, 1), (100_000, 3)]
    paged = Optimizer.PAGED_ADAMW_8BIT
    whole = optimizer.states_bytes(Optimizer.ADAMW_8BIT, tensors, Dtype.FLOAT32)
    assert optimizer.managed_bytes(paged, tensors) == 3 * 200_000
    assert optimizer.states_bytes(paged, tensors, Dtype.FLOAT32) == whole - 600_000


def test_ddp_buckets_are_the_trained_bytes() -> None:
    """The buckets of an 8B model in fp32: 29.9 GiB, whatever their size; as views they are the gradients."""
    views = only_rank(job(method="full", gpus=8))
    assert term(views, "gradients in buckets").size_bytes == 4 * LLAMA3_8B
    beside = only_rank(job(method="full", gpus=8, knobs={"gradient_as_bucket_view": False}))
    assert term(beside, "buckets").size_bytes == term(beside, "gradients").size_bytes == 4 * LLAMA3_8B


def test_one_rank_has_no_wrapper() -> None:
    names = {t.name for t in only_rank(job(method="full")).terms}
    assert not {"buckets", "gradients in buckets", "NCCL"} & names


def test_zero2_buckets() -> None:
    """Two buckets of 5e8 bf16 elements are 953.67 MiB each."""
    spec = job(method="full", shard="zero2", gpus=8, knobs={"reduce_bucket_size": 500_000_000, "overlap_comm": True})
    assert term(only_rank(spec), "gradient buckets").size_bytes == 2 * 1_000_000_000
    single = estimate(job(method="full", shard="zero2", gpus=8)).work  # transformers' auto: H * H elements, one buffer
    assert zero2.bucket_bytes(single) == 4096 * 4096 * 2


def test_zero_partitions_of_an_8b_model() -> None:
    work = estimate(job(method="full", shard="zero2", gpus=8)).work
    assert zero2.partition_numel(work) == LLAMA3_8B // 8 == 1_003_782_656
    rank = only_rank(job(method="full", shard="zero2", gpus=8))
    assert term(rank, "master weights, partition").size_bytes == 4 * 1_003_782_656
    assert term(rank, "optimizer states, partition").size_bytes == 8 * 1_003_782_656 + 4
    assert term(rank, "trained weights").size_bytes == 2 * LLAMA3_8B
    assert term(rank, "flattening").size_bytes == 2 * LLAMA3_8B - 4 * 1_003_782_656

    rank3 = only_rank(job(method="full", shard="zero3", gpus=8))
    assert term(rank3, "trained weights, partition").size_bytes == 2 * 1_003_782_656
    assert term(rank3, "master weights, partition").size_bytes == 4 * 1_003_782_656
    assert term(rank3, "gradients, partition").size_bytes == 2 * 1_003_782_656
    assert term(rank3, "gradient bucket").size_bytes == 4096 * 4096 * 2


def test_deepspeed_keeps_a_master_in_any_precision() -> None:
    for shard in ("zero2", "zero3"):
        rank = only_rank(job(TINY_CONFIG, method="full", shard=shard, gpus=2, precision="fp32", sequence_length=64))
        assert term(rank, "master weights, partition").size_bytes > 0


def test_zero3_keeps_small_parameters() -> None:
    """65 norms of 4,096 elements are under 10 * 4096; nothing else of Llama 3 8B is."""
    rank = only_rank(job(method="full", shard="zero3", gpus=8))
    assert term(rank, "persistent parameters, whole").size_bytes == 65 * 4096 * 2


def test_zero3_gathers_up_to_its_limit() -> None:
    """An 8B model up to max_live_parameters, and the head that it fetches last beyond that."""
    work = estimate(job(method="full", shard="zero3", gpus=8)).work
    found = zero3_gathered.live_bytes(work)
    assert (
        2_000_000_000 < max(found.embedding, *map(max, found.blocks), found.head) < 2 * (1_000_000_000 + 128_256 * 4096)
    )
    work = estimate(job("qwen2.5-0.5b", method="full", shard="zero3", gpus=8)).work
    found = zero3_gathered.live_bytes(work)
    assert found.loss < found.embedding <= zero3_gathered.released_bytes(work)


def test_fsdp_buffers_of_an_8b_model() -> None:
    """One block in bf16 is 416 MiB; embedding and head, groups of their own, are 2,004 MiB each to reduce in fp32."""
    work = estimate(job(method="full", shard="fsdp", gpus=8)).work
    (block,) = work.inventory.blocks
    assert rows.gathered_bytes(work, block) == 436_224_000
    assert [p.name for p in fsdp.last_group(work).parameters] == ["model.embed_tokens.weight"]
    assert [p.name for p in fsdp.tail(work).parameters] == ["model.norm.weight", "lm_head.weight"]
    assert rows.reduced_numel(work, fsdp.last_group(work)) * rows.reduce_bytes(work) == 2004 * MIB


def test_a_tied_embedding_is_reduced_with_the_tail() -> None:
    work = estimate(job("llama3.2-1b", method="full", shard="fsdp", gpus=8)).work
    assert fsdp.last_group(work) is fsdp.tail(work)
    assert [p.name for p in fsdp.tail(work).parameters] == ["model.embed_tokens.weight", "model.norm.weight"]


def test_fsdp_splits_rows_and_pads() -> None:
    """torch.chunk of 10 rows over 4 ranks: 3, 3, 3, 1; each rank stores 3."""
    assert [rows.local_numel((10, 5), 4, rank) for rank in range(4)] == [15, 15, 15, 5]
    assert rows.padded_numel((10, 5), 4) == 15
    assert [rows.local_numel((3,), 4, rank) for rank in range(4)] == [1, 1, 1, 0]


def test_fsdp_ranks_differ_where_rows_do_not_divide() -> None:
    plan = estimate(job(method="full", shard="fsdp", gpus=7, global_batch=14))
    assert [rank.ranks for rank in plan.ranks] == [(0, 1, 2, 3, 4, 5), (6,)]
    first, last = (term(rank, "optimizer states, shard").size_bytes for rank in plan.ranks)
    assert last < first


def test_qlora_constants_are_not_sharded() -> None:
    alone = only_rank(job(method="qlora", shard="ddp"))
    for shard in ("fsdp", "zero3"):
        sharded = only_rank(job(method="qlora", shard=shard, gpus=2))
        whole = term(sharded, "quantisation constants, whole")
        assert whole.size_bytes == term(alone, "quantisation constants").size_bytes


def test_offload_leaves_no_states_on_the_device() -> None:
    for shard, offload in (("zero2", "optimizer"), ("zero3", "optimizer"), ("zero3", "all"), ("fsdp", "all")):
        rank = only_rank(job(method="full", shard=shard, offload=offload, gpus=2))
        assert not [t for t in rank.terms if t.kind in (TermKind.OPTIMIZER_STATES, TermKind.MASTER_WEIGHTS)]
    weights = [t for t in rank.terms if t.kind is TermKind.WEIGHTS]
    assert weights == []


def test_cross_entropy_bytes_a_logit() -> None:
    """bf16 logits, fp32 copy, log-softmax forward; transformers <= 4.49 added a shifted copy, for the published 14."""
    assert loss.forward_bytes_per_logit(2) == 10
    assert loss.forward_bytes_per_logit(2, shifted_copy=True) == 14
    assert loss.forward_bytes_per_logit(4) == 8
    assert loss.backward_bytes_per_logit() == 12


def slope_bytes_per_token(phase: Phase, **options: object) -> float:
    """Growth of a phase's peak from one micro batch to two, a token."""
    small, large = (
        only_rank(job("mistral-7b", micro_batch=size, sequence_length=4096, **options)).allocated_bytes_in(phase)  # type: ignore[arg-type]
        for size in (1, 2)
    )
    return (large - small) / 4096


def test_slope_of_a_public_lora_run() -> None:
    """Mistral 7B, LoRA on attention, checkpointed, flash attention, transformers 4.48: 734,762 B a token measured,
    14V + (L + 3) * 2H in closed form. Without the shifted copy of that version two bytes a logit go."""
    slope = slope_bytes_per_token(
        Phase.BACKWARD,
        precision="bf16_pure",
        attention="flash_attention_2",
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    )
    published = 734_762
    assert slope + 2 * 32000 == pytest.approx(published, rel=0.0001)


def test_liger_chunk() -> None:
    """T = 16,384, V = 32,000, H = 4,096: the kernel's own example, a chunk of 2,048."""
    assert loss.chunk_tokens(16_384, 32_000, 4_096) == 2_048
    assert loss.chunk_tokens(4_096, 128_256, 4_096) == 128
    assert loss.chunk_tokens(100, 64, 4_096) == 100


def test_terms_say_where_they_come_from() -> None:
    for method in ("full", "lora", "qlora"):
        for shard in ("ddp", "fsdp", "zero2", "zero3"):
            for rank in estimate(job(method=method, shard=shard, gpus=4)).ranks:
                assert all(t.source and t.formula and t.phases for t in rank.terms)
                names = [t.name for t in rank.terms]
                assert len(names) == len(set(names)), names
