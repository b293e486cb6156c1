"""Host RAM and disk: which ranks hold what, when, and how many bytes."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.planner import disk, host, quantisation
from launcher.planner.constants import Key
from launcher.planner.types import HostMoment
from launcher.planner.workload import Workload
from launcher.shards import waits_in_host_memory
from launcher.spec import MethodKind
from launcher.units import MIB
from tests.planner_jobs import estimate, job

NUMEL = 8_030_261_248  # of llama3-8b
NUM_TENSORS = 3 + 32 * 9
ADAPTER = 41_943_040  # rank 16 on every linear layer


def work(**options: object) -> Workload:
    return estimate(job(**options)).work  # type: ignore[arg-type]


def terms(**options: object) -> dict[str, int]:
    return {term.name: term.size_bytes for term in host.host_terms(work(**options), 0)}


def test_weights_are_converted_by_every_rank_or_not_at_all() -> None:
    """The checkpoint is in bf16. Full fine-tuning over DDP and FSDP2 trains in fp32; ZeRO-2 and LoRA load bf16, which
    is read through the memory map, as it lies; ZeRO-3 partitions each parameter as it is read."""
    read = "weights, converted while read"
    assert terms(method="full", gpus=4)[read] == 4 * 4 * NUMEL
    assert terms(method="full", shard="fsdp", gpus=4)[read] == 4 * 4 * NUMEL
    for options in ({"shard": "zero2"}, {"shard": "zero3"}, {"method": "lora"}, {"method": "qlora"}):
        assert read not in terms(**({"method": "full", "gpus": 4} | options))


def test_quantised_weights_wait_on_every_rank_where_fsdp_shards_them() -> None:
    waiting = "quantised weights, until they are sharded"
    quantised = work(method="qlora", shard="fsdp", gpus=4)
    whole = quantisation.total_packed_bytes(quantised) + quantisation.total_constants_bytes(quantised)
    assert terms(method="qlora", shard="fsdp", gpus=4)[waiting] == 4 * whole
    for options in ({"shard": "zero3"}, {"shard": "ddp"}, {"method": "lora"}):
        assert waiting not in terms(**({"method": "qlora", "shard": "fsdp", "gpus": 4} | options))


def test_rank_0_gathers_or_copies_what_it_writes() -> None:
    gathered = "gathered to be saved"
    assert terms(shard="zero2", gpus=4)[gathered] == 2 * ADAPTER
    assert terms(method="full", shard="zero2", gpus=4)[gathered] == 2 * NUMEL
    assert terms(shard="fsdp", gpus=4)[gathered] == 2 * NUMEL + 4 * ADAPTER
    assert terms(shard="zero3", gpus=4)[gathered] == 2 * ADAPTER
    assert terms(shard="ddp", gpus=4)[gathered] == 4 * ADAPTER
    assert terms(method="full", gpus=4)[gathered] == 2 * NUMEL
    # FSDP2 gathers two fp32 moments of everything for a checkpoint, which is more than the model
    assert terms(method="full", shard="fsdp", gpus=4)[gathered] == 8 * NUMEL + 4 * NUM_TENSORS


def test_offloaded_states_and_what_pinning_rounds_up() -> None:
    zero3 = work(method="full", shard="zero3", offload="optimizer", gpus=4)
    assert host.offloaded_bytes_per_rank(zero3) == NUMEL // 4 * 18
    # two pinned fp32 blocks for each sub-group: matrices up to the one with which 1e9 elements are reached, and norms
    matrices, norms = NUMEL // 4 - 66_560, 66_560
    assert host.pinned_blocks(zero3) == (2 * matrices, 2 * matrices, 4 * norms) * 2
    assert host.pinning_bytes_per_rank(zero3) == 4 * (2**32 - 2 * matrices) + 2 * (2**19 - 4 * norms)
    everything = work(method="full", shard="zero3", offload="all", gpus=4)
    assert host.offloaded_bytes_per_rank(everything) == NUMEL // 4 * 20
    fsdp = work(method="full", shard="fsdp", offload="all", gpus=4)
    assert sum(host.pinned_blocks(fsdp)) == NUMEL
    assert host.pinning_bytes_per_rank(work(shard="zero3", gpus=4)) == 0


@pytest.mark.parametrize(("size", "rounded"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192)])
def test_power_of_two(size: int, rounded: int) -> None:
    assert host.power_of_two(size) == rounded


def test_processes_and_workers() -> None:
    found = work(gpus=4)
    with_workers = dataclasses.replace(
        found, spec=dataclasses.replace(found.spec, train=dataclasses.replace(found.spec.train, dataloader_workers=2))
    )
    by_name = {term.name: term for term in host.host_terms(with_workers, 0)}
    constants, device = found.constants, found.spec.device
    assert by_name["processes"].size_bytes == 4 * constants.get(Key.GPU_RANK, device).amount
    assert by_name["CUDA libraries"].size_bytes == 4 * constants.get(Key.CUDA_HOST, device).amount
    assert by_name["data workers"].size_bytes == 8 * 11 * MIB
    assert HostMoment.LOADING not in by_name["data workers"].moments


def test_the_peak_is_that_of_one_moment() -> None:
    """A full job over DDP is fullest while it loads, and what it saves is never there together with that."""
    found = work(method="full", gpus=4)
    amounts = terms(method="full", gpus=4)
    steady = amounts["processes"] + amounts["CUDA libraries"]
    assert host.host_ram_bytes_per_node(found, 0) == steady + 16 * NUMEL


def test_on_a_cpu_the_ranks_are_what_the_node_holds() -> None:
    found = work(device="cpu", gpus=2, precision="fp32")
    assert host.host_ram_bytes_per_node(found, 3_000_000_000) == 6_000_000_000


def test_every_term_says_where_it_comes_from() -> None:
    for method in MethodKind:
        for shard in ("ddp", "fsdp", "zero2", "zero3"):
            found = work(method=method.value, shard=shard, gpus=4)
            written = (*disk.checkpoint_terms(found), *disk.result_terms(found))
            assert all(t.formula and t.source for t in (*host.host_terms(found, 0), *written))


def test_disk_of_a_checkpoint() -> None:
    """FSDP2: fp32 weights twice and two moments; ZeRO-3: bf16 weights, fp32 master and two moments."""

    def checkpoint(**options: object) -> int:
        return disk.total_bytes(disk.checkpoint_terms(work(method="full", gpus=4, **options)))

    assert checkpoint(shard="fsdp") == 16 * NUMEL + 4 * NUM_TENSORS
    assert checkpoint(shard="zero3") == 14 * NUMEL + 2 * 4 * 4  # two flat groups on each rank
    assert checkpoint() == 12 * NUMEL + 4 * NUM_TENSORS


def test_disk_of_a_result() -> None:
    assert disk.total_bytes(disk.result_terms(work(method="full", shard="zero3", gpus=4))) == 2 * NUMEL
    assert disk.total_bytes(disk.result_terms(work())) == 4 * ADAPTER
    assert disk.total_bytes(disk.result_terms(work(shard="zero2", gpus=2))) == 2 * ADAPTER


def test_what_waits_in_host_memory() -> None:
    assert waits_in_host_memory(job(method="qlora", shard="fsdp", gpus=4))
    assert waits_in_host_memory(job(method="qlora", shard="fsdp", gpus=4, quant_type="fp4"))
    for options in ({"shard": "ddp"}, {"shard": "zero2"}, {"shard": "zero3"}, {"method": "lora"}, {"method": "full"}):
        assert not waits_in_host_memory(job(**({"method": "qlora", "shard": "fsdp", "gpus": 4} | options)))
    assert not waits_in_host_memory(job(method="qlora", shard="fsdp", gpus=4, quant_type="int8"))
    assert not waits_in_host_memory(job(method="qlora", shard="fsdp", gpus=4, device="cpu"))
