"""The listed cards: every file is read, sound, and below the figure on the box."""

from __future__ import annotations

import pytest
import yaml

from launcher.devices import find_device, listed_devices, match_device
from launcher.paths import conf_dir
from launcher.units import GIB, MIB

# The figure on the box in GiB, compute capability (developer.nvidia.com/cuda-gpus), bandwidth in GB/s (data sheets).
DATA_SHEETS = {
    "rtx3060-12g": (12, (8, 6), 360),
    "rtx3080-10g": (10, (8, 6), 760),
    "rtx3090": (24, (8, 6), 936),
    "rtx4060-8g": (8, (8, 9), 272),
    "rtx4070-12g": (12, (8, 9), 504),
    "rtx4090": (24, (8, 9), 1008),
    "rtx4090d": (24, (8, 9), 1008),
    "rtx5090": (32, (12, 0), 1792),
    "t4": (16, (7, 5), 320),
    "v100-16g": (16, (7, 0), 900),
    "v100-32g": (32, (7, 0), 900),
    "a10": (24, (8, 6), 600),
    "l4": (24, (8, 9), 300),
    "l20": (48, (8, 9), 864),
    "l40s": (48, (8, 9), 864),
    "a6000": (48, (8, 6), 768),
    "a100-40g": (40, (8, 0), 1555),
    "a100-80g": (80, (8, 0), 2039),
    "a800": (80, (8, 0), 2039),
    "h20": (96, (9, 0), 4000),
    "h100-80g": (80, (9, 0), 3350),
    "h800": (80, (9, 0), 3350),
    "h200": (141, (9, 0), 4800),
    "b200": (180, (10, 0), 8000),
}


def test_every_file_and_no_other_is_listed() -> None:
    files = {path.stem for path in (conf_dir() / "device").glob("*.yaml")}
    assert files - {"auto", "cpu"} == {card.name for card in listed_devices()} == set(DATA_SHEETS)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_two_that_are_no_cards(name: str) -> None:
    assert yaml.safe_load((conf_dir() / "device" / f"{name}.yaml").read_text()) == {"name": name, "kind": name}


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_card_agrees_with_its_data_sheet(name: str) -> None:
    box_gib, capability, bandwidth = DATA_SHEETS[name]
    card = find_device(name)
    assert card.kind == "cuda"
    assert card.memory_bytes is not None
    # What the driver and ECC take: below 11 % on every card (most on the T4 and the 24 and 48 GB cards with ECC).
    assert 0.89 * box_gib * GIB < card.memory_bytes < box_gib * GIB
    assert card.compute_capability == capability
    assert card.memory_bandwidth_bytes_per_s == bandwidth * 10**9
    assert card.source


def test_cards_are_sorted_by_memory() -> None:
    sizes = [card.memory_bytes for card in listed_devices()]
    assert sizes == sorted(sizes)
    assert (listed_devices()[0].name, listed_devices()[-1].name) == ("rtx4060-8g", "b200")


def test_t4_has_what_torch_reports() -> None:
    assert find_device("t4").memory_bytes == 14_912 * MIB


def test_unknown_card_is_refused_with_the_listed_ones() -> None:
    with pytest.raises(ValueError, match=r"^device=gtx1080 is not listed: choose rtx4060-8g, rtx3080-10g, ") as refusal:
        find_device("gtx1080")
    assert str(refusal.value).endswith(", h20, h200, b200")


@pytest.mark.parametrize(
    ("product", "memory_mib", "name"),
    [
        ("Tesla T4", 14912, "t4"),
        ("Tesla V100-SXM2-16GB", 16144, "v100-16g"),
        ("Tesla V100-SXM2-32GB", 32494, "v100-32g"),
        ("Tesla V100-PCIE-32GB", 32494, "v100-32g"),
        ("NVIDIA GeForce RTX 3060", 12044, "rtx3060-12g"),
        ("NVIDIA GeForce RTX 3060", 8000, None),  # the 8 GB model
        ("NVIDIA GeForce RTX 3080", 12000, None),  # the 12 GB model
        ("NVIDIA GeForce RTX 4070 Ti", 11866, None),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 7800, None),
        ("NVIDIA GeForce RTX 4090", 24210, "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", 24111, "rtx4090d"),
        ("NVIDIA A10", 22599, "a10"),
        ("NVIDIA A10G", 22599, None),
        ("NVIDIA RTX A6000", 48790, "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", 48500, None),
        ("NVIDIA A100-SXM4-40GB", 40339, "a100-40g"),
        ("NVIDIA A100 80GB PCIe", 81049, "a100-80g"),
        ("NVIDIA H100 80GB HBM3", 81089, "h100-80g"),
        ("NVIDIA H100 NVL", 95320, None),
        ("NVIDIA H200", 143156, "h200"),
        ("NVIDIA B200", 182642, "b200"),
        ("NVIDIA L4", 22693, "l4"),
        ("NVIDIA L40S", 45457, "l40s"),
    ],
)
def test_product_name_finds_its_card(product: str, memory_mib: int, name: str | None) -> None:
    card = match_device(product, memory_mib * MIB)
    assert (None if card is None else card.name) == name
