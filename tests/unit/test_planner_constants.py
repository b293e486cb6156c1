"""Amounts by card: the most specific entry counts, every entry says where it comes from, and NCCL's own sizes."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.devices import listed_devices
from launcher.planner import nccl
from launcher.planner.constants import Basis, Constant, Constants, Entry, Key, When, card_family, listed_constants
from launcher.planner.outside import num_communicators, outside_terms
from launcher.units import KIB, MIB
from tests.planner_jobs import ANY, card, estimate, job

OF_EVERY_CARD = [key for key in Key if key is not Key.NCCL_COMMUNICATORS]


def entry(amount: int, *, priority: int = 0, **when: object) -> Entry:
    constant = Constant(amount=amount, basis=Basis.MEASURED, source="a test")
    return Entry(constant=constant, when=When(**when), priority=priority)  # type: ignore[arg-type]


def outside(**options: object) -> dict[str, int]:
    work = estimate(job(**options)).work  # type: ignore[arg-type]
    return {term.name: term.size_bytes for term in outside_terms(work)}


@pytest.mark.parametrize("key", OF_EVERY_CARD)
def test_every_card_has_every_amount(key: Key) -> None:
    for device in (*listed_devices(), ANY, card("cpu")):
        found = listed_constants().get(key, device)
        assert found.amount >= 0
        assert found.provenance == f"{found.basis}: {found.source}"
        assert len(found.source) > 20


def test_the_table_has_no_other_keys_and_names_cards_that_are_listed() -> None:
    families = {card_family(device.name) for device in listed_devices()}
    for entries in listed_constants().entries.values():
        for found in entries:
            assert set(found.when.gpus or ()) <= families


@pytest.mark.parametrize(
    ("name", "context", "workspace", "channels"),
    [
        ("t4", 147_718_144, 8_519_680, 2),
        ("v100-16g", 400_000_000, 8_519_680, 12),
        ("a100-80g", 504_659_968, 8_519_680, 24),
        ("a800", 504_659_968, 8_519_680, 16),
        ("rtx3090", 256 * MIB, 8_519_680, 2),
        ("rtx4090", 504_659_968, 8_519_680, 2),
        ("h100-80g", 504_659_968, 32 * MIB, 24),
        ("h800", 504_659_968, 32 * MIB, 16),
        ("b200", 504_659_968, 32 * MIB, 36),
        ("rtx5090", 504_659_968, 32 * MIB, 2),
    ],
)
def test_amounts_of_a_card(name: str, context: int, workspace: int, channels: int) -> None:
    keys = (Key.CUDA_CONTEXT, Key.CUBLAS_WORKSPACE, Key.NCCL_CHANNELS)
    assert tuple(listed_constants().get(key, card(name)).amount for key in keys) == (context, workspace, channels)


def test_the_most_specific_entry_counts() -> None:
    narrower = (
        entry(1),
        entry(2, majors=(8,)),
        entry(3, compute_capability=(8, 0)),
        entry(4, gpus=("a100",)),
        entry(5, priority=1),
    )
    for number in range(1, 6):
        constants = Constants({Key.CUDA_CONTEXT: narrower[:number]})
        assert constants.get(Key.CUDA_CONTEXT, card("a100-80g")).amount == number
    assert Constants({Key.CUDA_CONTEXT: narrower[:4]}).get(Key.CUDA_CONTEXT, card("t4")).amount == 1
    assert Constants({}).find(Key.CUDA_CONTEXT, card("t4")) is None


def test_of_several_numbers_of_ranks_the_next_larger_counts() -> None:
    measured = tuple(entry(100 * ranks, num_ranks=ranks) for ranks in (2, 4, 8))
    constants = Constants({Key.NCCL_COMMUNICATORS: measured})
    found = [constants.find(Key.NCCL_COMMUNICATORS, card("t4"), num_ranks=ranks) for ranks in (2, 3, 4, 6, 16)]
    assert [constant.amount for constant in found if constant] == [200, 400, 400, 800, 800]


def test_nccl_connections_are_what_its_own_log_shows() -> None:
    """github.com/NVIDIA/nccl/issues/1685: allocations of 10,485,760 and of 2,097,152 bytes for each connection."""
    assert nccl.connection_bytes() == 10_485_760 + 2_097_152


def test_nccl_buffers_of_a_published_communicator() -> None:
    """github.com/NVIDIA/nccl/issues/964: 544 MB for two A100.

    256 of them are the buffers shared with the network, 32 channels x 16 steps x 512 KiB, which that version allocated
    at once; since 2.22 they are made when they are used.
    """
    shared = 32 * 16 * 512 * KIB
    assert nccl.ring_bytes(24) + shared == 544 * MIB
    assert nccl.tree_bytes(24, 2) == 0


def test_nvls_buffers_begin_with_the_third_rank() -> None:
    """nvls.cc: nChannels x 2 x (chunk x NCCL_STEPS) x nHeads; ncclNvlsInit returns where a node has two GPUs."""
    assert nccl.nvls_bytes(16, 8) == 268_435_456
    assert nccl.nvls_bytes(16, 2) == 0


def test_what_lies_outside_by_number_of_ranks_and_sharding() -> None:
    one = outside(device="h100-80g")
    assert one == {"CUDA context": 504_659_968}
    base = one | {"NCCL": 239_075_328}
    assert outside(device="h100-80g", gpus=2) == base | {"NCCL buffers": 288 * MIB}
    assert outside(device="h100-80g", gpus=8) == base | {
        "NCCL buffers": 576 * MIB,
        "NVLink SHARP buffers": 256 * MIB,
    }
    assert outside(device="a100-80g", gpus=8, shard="zero2")["NCCL buffers"] == 2 * 576 * MIB
    assert "NVLink SHARP buffers" not in outside(device="a100-80g", gpus=8)


def test_a_calibration_takes_the_place_of_the_formula() -> None:
    measured = Constants({}).joined({Key.NCCL_COMMUNICATORS: (entry(700 * MIB, priority=2, num_ranks=8),)})
    constants = listed_constants().joined(measured.entries)
    work = estimate(job(device="h100-80g", gpus=8, shard="zero3")).work
    terms = {term.name: term for term in outside_terms(dataclasses.replace(work, constants=constants))}
    assert num_communicators(work) == 2
    assert terms["NCCL communicators"].size_bytes == 1400 * MIB
    assert terms["NCCL communicators"].source == "measured: a test"
    assert "NCCL buffers" not in terms
