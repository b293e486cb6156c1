"""What must hold for every plan."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.planner.sharding import rows, zero2, zero3_layout
from launcher.planner.types import Phase
from launcher.rules import OFFLOADS
from launcher.spec import ActivationCheckpointing, Offload, ShardKind
from tests.planner_jobs import TINY_CONFIG, estimate, job

SHARDS = [shard.value for shard in ShardKind]


@st.composite
def options(draw: Any) -> dict[str, Any]:
    """Any allowed job of the tiny model but its sizes."""
    shard = draw(st.sampled_from(SHARDS))
    on_cuda = draw(st.booleans())
    precision = draw(st.sampled_from(["fp32", "bf16_mixed", "bf16_pure"]))
    offloads = OFFLOADS[ShardKind(shard)] if on_cuda else (Offload.NONE,)
    return {
        "method": draw(st.sampled_from(["full", "lora", "qlora"])),
        "shard": shard,
        "offload": draw(st.sampled_from(offloads)).value,
        "device": "a100-80g" if on_cuda else "cpu",
        "precision": precision,
        "checkpointing": draw(st.sampled_from(list(ActivationCheckpointing))).value,
        "attention": draw(st.sampled_from(["sdpa", "eager"])),
        "loss": draw(st.sampled_from(["cross_entropy", "chunked", *(["fused_linear"] if on_cuda else [])])),
        "rank": draw(st.integers(1, 32)),
    }


@given(options(), st.integers(1, 8), st.integers(16, 200), st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_sizes_are_positive_and_ranks_complete(
    chosen: dict[str, Any], gpus: int, length: int, micro_batch: int
) -> None:
    found = estimate(
        job(
            TINY_CONFIG,
            gpus=gpus,
            sequence_length=length,
            micro_batch=micro_batch,
            global_batch=gpus * micro_batch,
            **chosen,
        )
    )
    assert sorted(rank for plan in found.ranks for rank in plan.ranks) == list(range(gpus))
    for plan in found.ranks:
        assert all(t.size_bytes > 0 and t.phases for t in plan.terms)
        assert plan.allocated_bytes == max(plan.allocated_bytes_in(phase) for phase in Phase) > 0
    assert found.need.low_bytes < found.need.process_bytes < found.need.high_bytes


@given(options(), st.integers(1, 6), st.integers(16, 120))
@settings(deadline=None, max_examples=80)
def test_a_larger_batch_or_longer_sequence_never_needs_less(
    chosen: dict[str, Any], micro_batch: int, length: int
) -> None:
    def allocated(batch: int, tokens: int) -> int:
        spec = job(TINY_CONFIG, gpus=2, sequence_length=tokens, micro_batch=batch, global_batch=2 * batch, **chosen)
        return max(plan.allocated_bytes for plan in estimate(spec).ranks)

    here = allocated(micro_batch, length)
    assert allocated(micro_batch + 1, length) >= here
    assert allocated(micro_batch, length + 8) >= here


@pytest.mark.parametrize("shard", ["fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_more_ranks_never_need_more(shard: str, method: str) -> None:
    needed = [
        max(
            plan.allocated_bytes for plan in estimate(job(method=method, shard=shard, gpus=gpus, global_batch=64)).ranks
        )
        for gpus in (2, 4, 8, 16, 64)
    ]
    assert needed == sorted(needed, reverse=True)


@given(st.integers(1, 70), st.lists(st.integers(1, 50), min_size=1, max_size=3))
def test_fsdp_shards_add_up_to_the_whole(world_size: int, shape: list[int]) -> None:
    whole = 1
    for size in shape:
        whole *= size
    parts = [rows.local_numel(tuple(shape), world_size, rank) for rank in range(world_size)]
    assert sum(parts) == whole
    assert rows.padded_numel(tuple(shape), world_size) == parts[0] == max(parts)


@pytest.mark.parametrize("gpus", [2, 3, 5, 8])
def test_zero_partitions_add_up_to_the_whole_and_padding(gpus: int) -> None:
    work = estimate(job(TINY_CONFIG, method="full", shard="zero2", gpus=gpus, global_batch=gpus)).work
    whole = work.inventory.trained_numel
    assert 0 <= zero2.partition_numel(work) * gpus - whole < 2 * 2 * gpus  # two groups
    work = estimate(job(TINY_CONFIG, method="full", shard="zero3", gpus=gpus, global_batch=gpus)).work
    num_tensors = sum(count for _, count in work.inventory.counted())
    assert 0 <= zero3_layout.partition_numel(work) * gpus - whole < num_tensors * gpus
