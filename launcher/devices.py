"""The cards one can plan for without having them: conf/device, one small file each.

A card's memory is what CUDA says a process can use in all: cuDeviceTotalMem, torch's total_memory, the "total
capacity" of its out-of-memory message. nvidia-smi shows more, for it counts what the driver keeps (a T4: 14,912 MiB
and 15,360), and the figure on the box is larger still. The total shrinks a little with newer drivers, so each file
has the lowest figure that was found published for Linux, and where that was only a figure for cards of that size, or
for the same chip under another name, its source begins with "derived".
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from launcher.paths import conf_dir
from launcher.spec import DeviceSpec

CUDA = "cuda"
# Words of a product name that say who made it, its size or its form: 'NVIDIA A100-SXM4-80GB' is an a100.
NOISE = r"nvidia|geforce|tesla|sxm\d*|pcie|hbm\d+e?|\d+gb"


@cache
def listed_devices() -> tuple[DeviceSpec, ...]:
    """Every card under conf/device, the one with the least memory first."""
    devices = (_device(_read(path)) for path in (conf_dir() / "device").glob("*.yaml"))
    cards = (device for device in devices if device.kind == CUDA)
    return tuple(sorted(cards, key=lambda card: (card.memory_bytes or 0, card.name)))


def find_device(name: str) -> DeviceSpec:
    """The listed card of this name; ValueError names them all."""
    for card in listed_devices():
        if card.name == name:
            return card
    raise ValueError(f"device={name} is not listed: choose {', '.join(card.name for card in listed_devices())}")


def match_device(product: str, memory_bytes: int) -> DeviceSpec | None:
    """The listed card that the driver calls by this product name, told from its other sizes by its memory."""
    name = "".join(word for word in re.split(r"[\s-]+", product.lower()) if not re.fullmatch(NOISE, word))
    name = name.removeprefix("rtx") if name.startswith("rtxa") else name
    for card in listed_devices():
        assert card.memory_bytes is not None, "a listed card has a capacity"
        same_size = abs(memory_bytes - card.memory_bytes) < card.memory_bytes // 10
        if same_size and re.sub(r"-\d+g$", "", card.name) == name:
            return card
    return None


def _read(path: Path) -> dict[str, Any]:
    # For all files together the C loader takes 1 ms and the pure Python one 18.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    values: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    return values


def _device(values: dict[str, Any]) -> DeviceSpec:
    capability = values.get("compute_capability")
    return DeviceSpec(
        name=values["name"],
        kind=values["kind"],
        memory_bytes=values.get("memory_bytes"),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        memory_bandwidth_bytes_per_s=values.get("memory_bandwidth_bytes_per_s"),
        source=values.get("source", ""),
    )
