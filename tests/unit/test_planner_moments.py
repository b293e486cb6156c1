"""What the shardings hold at the moments of a step, against numbers worked out by hand or seen in the libraries."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.grid.compare import planned_bytes
from launcher.planner.experts import merged_numels
from launcher.planner.inventory import State
from launcher.planner.moments import FORWARDS, MOMENTS, Place, Point
from launcher.planner.ranks import STEP, plan_of_rank, rank_plans
from launcher.planner.sharding import fsdp, prefetch, rows, zero2, zero3_gathered
from launcher.planner.sharding.allgather import Gathered
from launcher.planner.types import Phase
from tests.planner_jobs import estimate, job, model_config, only_rank, term

LLAMA3_8B = 8_030_261_248
EMBEDDING = 128_256 * 4_096


def two_layers(**options: object) -> object:
    config = model_config("llama3-8b") | {"num_hidden_layers": 2}
    return estimate(job(config, gpus=8, global_batch=8, **options)).work  # type: ignore[arg-type]


def test_every_phase_of_a_step_and_of_an_evaluation_has_its_highest_moment() -> None:
    rank = only_rank(job(method="full", shard="fsdp", gpus=8))
    gathered = [t for t in rank.terms if t.name.startswith("parameters, gathered")]
    found = {phase for t in gathered for phase in t.phases}
    assert found == {Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.EVALUATION}
    assert {moment.phase for moment in MOMENTS} == {Phase.LOSS, Phase.BACKWARD}
    assert sum(moment.place is Place.LAST for moment in MOMENTS) == 3


def test_gradients_stand_beside_ddps_buckets_under_accumulation() -> None:
    """no_sync: the reducer does not listen, so both are there until the last micro batch (seen with torch 2.13 on two
    ranks: 64 MiB for 32 MiB of parameters, from the first micro batch's backward pass to the last one's)."""
    once = only_rank(job(method="full", gpus=8, global_batch=8))
    assert "gradients beside the buckets" not in {t.name for t in once.terms}
    twice = only_rank(job(method="full", gpus=8, global_batch=16))
    beside = term(twice, "gradients beside the buckets")
    assert beside.size_bytes == term(twice, "gradients in buckets").size_bytes == 4 * LLAMA3_8B
    assert Phase.OPTIMIZER not in beside.phases


def test_a_rank_of_zero2_keeps_every_gradient_that_its_partition_touches() -> None:
    """On 64 ranks a partition has 125 million elements, and the embedding's 525 million are on each of five."""
    work = estimate(job(method="full", shard="zero2", gpus=8, nodes=8, global_batch=64)).work
    no_decay = 65 * 4096 // 64
    assert zero2.averaged_numel(work, 1) == EMBEDDING + no_decay
    assert zero2.partition_numel(work) == pytest.approx(LLAMA3_8B / 64, rel=1e-6)
    assert zero2.averaged_numel(work, 30) < EMBEDDING
    ((ranks, planned),) = zero2.rank_classes(work)
    assert len(ranks) == 64
    assert zero2.averaged_numel(work, planned) == max(zero2.averaged_numel(work, rank) for rank in ranks)


def test_zero2_takes_norms_in_fp64() -> None:
    """Of 64 ranks the second holds nothing but embedding: 125 million elements x 8 B, more than flat bf16 and fp32."""
    work = estimate(job(method="full", shard="zero2", gpus=8, nodes=8, global_batch=64)).work
    found = [t for t in plan_of_rank(work, 1).terms if t.name.startswith("gradients, for their norm")]
    assert sum(t.size_bytes for t in found) == 8 * ((LLAMA3_8B - 65 * 4096) // 64)


def test_zero2_makes_states_when_only_flat_fp32_gradients_are_left() -> None:
    """deepspeed 0.19.8 on three ranks, two layers of Llama 3 8B: at its highest the first step had the weights, a third
    of the elements four times in fp32 and the gradients of the partition (traced)."""
    config = model_config("llama3-8b") | {"num_hidden_layers": 2}
    work = estimate(job(config, method="full", shard="zero2", gpus=3, global_batch=3)).work
    rank = plan_of_rank(work, 0)
    in_bf16 = term(rank, "trained weights").size_bytes + term(rank, "gradients, averaged").size_bytes
    in_fp32 = 4 * 4 * zero2.partition_numel(work)
    assert planned_bytes(rank, Phase.FIRST_STEP) == pytest.approx(in_bf16 + in_fp32, rel=1e-5)
    assert planned_bytes(rank, Phase.FIRST_STEP) == pytest.approx(11_954_600_000, rel=1e-3)
    assert rank.allocated_bytes_in(Phase.OPTIMIZER) > rank.allocated_bytes_in(Phase.FIRST_STEP)


def test_after_an_evaluation_fsdp_gathers_the_tail_once_more() -> None:
    """torch 2.13, two layers of Llama 3 8B on eight ranks (traced): in the embedding's backward pass its fp32
    reduce-scatter, its gradient and the tail's flat buffer, beside shards and sharded gradients."""
    config = model_config("llama3-8b") | {"num_hidden_layers": 2}
    spec = job(config, method="full", shard="fsdp", gpus=8, micro_batch=2, sequence_length=1024, global_batch=16)
    rank = only_rank(spec)
    assert planned_bytes(rank, Phase.FIRST_STEP) == pytest.approx(5_689_635_348, rel=0.005)
    found = term(rank, "parameters, gathered after an evaluation")
    assert found.phases == (Phase.FIRST_STEP,)
    assert found.size_bytes == rows.gathered_bytes(estimate(spec).work, fsdp.tail(estimate(spec).work))


def test_prefetching_is_that_of_a_real_engine() -> None:
    """deepspeed 0.19.8 with two layers of Llama 3 8B in bf16, checkpointed, the evaluation before the first step: at
    its loss the coordinator counted 625,999,872 available elements beside the head's, and at most all 1,486,880,768
    before; where the MLP is at its widest, its up projection has been released."""
    found = zero3_gathered.live_bytes(two_layers(method="full", shard="zero3"))  # type: ignore[arg-type]
    block = 2 * 218_103_808
    loss = 2 * 625_999_872
    assert found == prefetch.Live(
        embedding=found.embedding,
        blocks=found.blocks,
        norm=loss + 2 * EMBEDDING,
        loss=loss,
        head=loss + 2 * EMBEDDING,
        last_block=loss + block,
    )
    assert 2 * EMBEDDING < found.embedding < max(map(max, found.blocks)) == 2 * (1_486_880_768 - 14_336 * 4_096)


def test_a_flat_buffer_stays_until_all_in_it_have_been_waited_for() -> None:
    """Two parameters of 10 and 20 bytes come in a flat buffer of 30; the first that is fetched has both copied out."""
    gathered = Gathered()
    first, second, alone = (1, 5, 10), (2, 10, 20), (3, 4, 8)
    gathered.gather((first, second))
    gathered.gather((alone,))
    assert (gathered.numel, gathered.size_bytes) == (19, 38)
    assert gathered.fetch((alone,)) == 38
    assert gathered.fetch((first,)) == gathered.size_bytes == 68
    gathered.release(first)
    assert gathered.fetch((second,)) == 58
    assert gathered.size_bytes == 28
    assert gathered.fetch((first, second)) == 38


def test_a_module_of_two_parameters_has_them_twice_while_they_are_fetched() -> None:
    gathered = Gathered()
    assert gathered.fetch(((1, 5, 10), (2, 10, 20))) == 60
    assert gathered.size_bytes == 30


def test_a_tied_embedding_stays_where_the_head_comes_soon() -> None:
    """Two layers of Llama 3.2 1B: with a reuse distance of one element it is released, and gathered again."""
    embedding = 2 * 128_256 * 2_048
    soon = job(model_config("llama3.2-1b") | {"num_hidden_layers": 2}, method="full", shard="zero3", gpus=8)
    late = dataclasses.replace(soon, shard=dataclasses.replace(soon.shard, max_reuse_distance=1, max_live_parameters=1))
    kept, released = (zero3_gathered.live_bytes(estimate(spec).work) for spec in (soon, late))
    assert min(min(block) for block in kept.blocks) > embedding
    assert max(max(block) for block in released.blocks) < embedding


def test_a_lora_layer_fetches_its_first_matrix_before_what_it_adapts() -> None:
    """As traced with Qwen3 4B: the first gather ahead is of q_proj's first matrix (16 x 2,560) and q_proj (4,096 x
    2,560) together, so that the embedding stands beside a flat buffer of both."""
    config = model_config("qwen3-4b") | {"num_hidden_layers": 2}
    work = estimate(job(config, shard="zero3", gpus=8, global_batch=8)).work
    after_embedding = zero3_gathered.live_bytes(work).embedding - 2 * 151_936 * 2_560
    assert after_embedding == 21_053_440 + 31_883_264


def test_adapted_experts_are_fetched_with_their_router() -> None:
    """As traced with Qwen3 30B: gate and up, down, the router and the first matrix, in this order, before the router
    runs; the largest is beside the flat buffer that it came in."""
    config = model_config("qwen3-30b-a3b") | {"num_hidden_layers": 2}
    work = estimate(job(config, shard="zero3", gpus=4, global_batch=4, sequence_length=4096)).work
    blocks = zero3_gathered.live_bytes(work).blocks
    assert blocks.down[0] == 0
    assert blocks.mlp[-1] == pytest.approx(3_316_252_672, rel=1e-3)


def test_zero3s_first_steps_gather_nothing_ahead_of_a_loss() -> None:
    """The order of a whole step is recorded in the second: at its loss nothing is gathered, and states are there."""
    rank = only_rank(job(method="full", shard="zero3", gpus=8, nodes=8, global_batch=64))
    first = {t.name: t.size_bytes for t in rank.terms if Phase.FIRST_STEP in t.phases}
    loss = {t.name: t.size_bytes for t in rank.terms if Phase.BACKWARD in t.phases}
    assert "log-softmax and its gradients" in first
    assert "optimizer states, partition" in first
    assert not [name for name in first if name.startswith("live parameters")]
    assert [name for name in loss if name.startswith("live parameters")]


def test_zero3_knows_the_order_by_its_second_step_under_accumulation() -> None:
    rank = only_rank(job(method="full", shard="zero3", gpus=8, global_batch=16))
    steady = max(rank.allocated_bytes_in(phase) for phase in STEP)
    assert rank.allocated_bytes_in(Phase.FIRST_STEP) == steady


def test_zero3_prefetches_in_its_first_forward_pass_as_in_an_evaluation() -> None:
    """Nothing that comes after the head is gathered ahead, and without an order nothing at all."""
    work = two_layers(method="full", shard="zero3")
    alone, evaluation, step = (zero3_gathered.live_bytes(work, order) for order in prefetch.Order)  # type: ignore[arg-type]
    assert (alone.loss, evaluation.loss) == (0, 0) < (step.loss, 0)
    assert max(alone.blocks[0]) == 2 * 14_336 * 4_096 < max(evaluation.blocks[0]) <= max(step.blocks[0])


def test_forward_passes_are_fullest_where_gathering_is() -> None:
    """30 blocks of a small model are all gathered ahead, long before the last block."""
    work = estimate(job("smollm2-135m", shard="zero3", gpus=8, micro_batch=4, sequence_length=1024)).work
    moment = FORWARDS[Point.BLOCK]
    assert 1 < zero3_gathered.fullest_block(work, moment) < 30
    assert zero2.fullest_block(work, moment) == 30


def test_prefetching_ends_at_the_limit() -> None:
    """Nothing ahead but the bucket that passes the limit, which has one parameter at least."""
    work = estimate(job(method="full", shard="zero3", gpus=8, knobs={"max_live_parameters": 1})).work
    found = zero3_gathered.live_bytes(work)
    assert (found.embedding, found.head, found.loss) == (2 * EMBEDDING, 2 * EMBEDDING, 0)


def test_zero3_keeps_4_bit_weights_whole_through_the_step() -> None:
    rank = only_rank(job(method="qlora", shard="zero3", gpus=8))
    kept = term(rank, "4-bit weights kept by autograd, whole")
    assert kept.size_bytes == term(only_rank(job(method="qlora")), "nf4 weights").size_bytes
    assert Phase.OPTIMIZER in kept.phases
    assert Phase.EVALUATION not in kept.phases


def test_a_quantised_model_is_whole_on_a_gpu_of_zero3_and_on_none_of_fsdp() -> None:
    model, whole_bytes = "llama3.1-70b", 35 * 2**30
    assert only_rank(job(model, method="qlora", shard="zero3", gpus=8)).allocated_bytes_in(Phase.LOAD) > whole_bytes
    rank = only_rank(job(model, method="qlora", shard="fsdp", gpus=8))
    assert max(map(rank.allocated_bytes_in, (Phase.LOAD, Phase.WRAP))) < whole_bytes / 3
    embedding = 128_256 * 8_192
    assert term(rank, "one whole group, before it is sharded").size_bytes == 2 * (2 * embedding + 8_192)


def test_the_block_that_is_sharded_last_is_the_most_where_it_is_larger_than_the_embedding() -> None:
    """Mixtral's experts are not quantised: 2.8 GB a block, of which a shard is 1 / 8."""
    rank = only_rank(job("mixtral-8x7b", method="qlora", shard="fsdp", gpus=8))
    experts = 8 * 3 * 14_336 * 4_096 * 2
    assert term(rank, "one whole group, before it is sharded").size_bytes == pytest.approx(experts, rel=0.02)


def test_adapted_experts_are_merged_whole() -> None:
    """Mixtral: a layer's experts are 2 x 14,336 x 4,096 and 14,336 x 4,096, eight times."""
    work = estimate(job("mixtral-8x7b", method="lora", shard="zero2", gpus=8)).work
    (block,) = work.inventory.blocks
    down = 8 * 14_336 * 4_096
    assert merged_numels(block) == (2 * down, down)
    attention_only = estimate(job("mixtral-8x7b", method="lora", targets=("q_proj",))).work
    assert merged_numels(attention_only.inventory.blocks[0]) == ()


def test_the_tail_of_fsdp_is_there_twice_at_the_loss() -> None:
    """Its flat all-gather output lives until the forward pass returns, and the loss is computed inside."""
    work = estimate(job(method="full", shard="fsdp", gpus=8)).work
    found = term(only_rank(job(method="full", shard="fsdp", gpus=8)), "parameters, gathered, at the loss")
    assert found.size_bytes == 2 * rows.gathered_bytes(work, fsdp.tail(work))


def test_ranks_of_fsdp_are_found_without_asking_each() -> None:
    """1,024 ranks over vocabularies, widths and LoRA ranks that do not divide: the classes are those of asking all."""
    for config, gpus in ((model_config("qwen2.5-7b"), 1000), (model_config("llama3-8b"), 1024)):
        for method in ("full", "lora"):
            work = estimate(job(config, method=method, shard="fsdp", gpus=8, nodes=gpus // 8, global_batch=gpus)).work
            asked: dict[int, list[int]] = {}
            for rank in range(gpus):
                numel = sum(n * count for n, count in rows.local_tensors(work, rank))
                asked.setdefault(numel, []).append(rank)
            found = [list(ranks) for ranks, _ in rows.rank_classes(work)]
            assert sorted(found) == sorted(asked.values())


def test_one_rank_of_each_class_stands_for_it() -> None:
    work = estimate(job(method="full", shard="fsdp", gpus=7, global_batch=14)).work
    for plan in rank_plans(work):
        for rank in plan.ranks:
            assert plan_of_rank(work, rank).allocated_bytes == plan.allocated_bytes


def test_the_first_step_needs_no_more_than_a_later_one() -> None:
    for shard in ("ddp", "fsdp", "zero2", "zero3"):
        rank = only_rank(job(method="full", shard=shard, gpus=8))
        steady = max(rank.allocated_bytes_in(p) for p in (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER))
        assert 0 < rank.allocated_bytes_in(Phase.FIRST_STEP) <= steady
    assert State.TRAINED.is_trained
