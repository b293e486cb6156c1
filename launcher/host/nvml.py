"""The GPUs of this host, asked from the driver through NVML: no CUDA context is made and torch is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

from launcher.devices import CUDA, match_device
from launcher.spec import DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs that a process started now would see, in the driver's order (by PCI bus).

    problem: why there are none although NVML was asked, in its own words.
    """

    cards: tuple[DeviceSpec, ...]
    driver: str | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardNow:
    """A visible GPU at this moment. name: as CUDA_VISIBLE_DEVICES takes it."""

    name: str
    free_bytes: int


def cards_now(env: Mapping[str, str], nvml: Any = pynvml) -> tuple[CardNow, ...]:
    """The visible GPUs and what nobody has taken of them; none where NVML does not answer."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    given = None if visible is None else [word.strip() for word in visible.split(",")]
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = tuple(nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount()))
        uuids = tuple(str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles)
        chosen = visible_indices(uuids, visible)
        names = map(str, chosen) if given is None else given  # an entry that names no GPU ends the list
        free = (int(nvml.nvmlDeviceGetMemoryInfo(handles[index], version=nvml.nvmlMemory_v2).free) for index in chosen)
        return tuple(CardNow(name=name, free_bytes=size) for name, size in zip(names, free, strict=False))
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def detect_gpus(env: Mapping[str, str], nvml: Any = pynvml) -> Gpus:
    """The visible GPUs; none where there is no NVIDIA driver. Honours CUDA_VISIBLE_DEVICES."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(cards=(), driver=None, problem=str(error))
    try:
        driver = str(nvml.nvmlSystemGetDriverVersion())
        handles = tuple(nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount()))
        uuids = tuple(str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles)
        chosen = visible_indices(uuids, env.get("CUDA_VISIBLE_DEVICES"))
        cards = tuple(_card(nvml, handles[index], driver) for index in chosen)
        return Gpus(cards=cards, driver=driver, problem=None)
    except nvml.NVMLError as error:
        return Gpus(cards=(), driver=None, problem=str(error))
    finally:
        nvml.nvmlShutdown()


def visible_indices(uuids: tuple[str, ...], visible: str | None) -> tuple[int, ...]:
    """Which GPUs CUDA would show: None means all. An entry is an index or the beginning of a UUID.

    The first entry that names no GPU ends the list, as in CUDA (CUDA C++ Programming Guide, 'CUDA Environment
    Variables'); so does one that was named before. Indices count by PCI bus, which is also CUDA's order where all GPUs
    are of one kind; where they are mixed CUDA counts the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    if visible is None:
        return tuple(range(len(uuids)))
    return tuple(_until_unknown(uuids, visible))


def _until_unknown(uuids: tuple[str, ...], visible: str) -> Iterator[int]:
    seen: set[int] = set()
    for entry in (word.strip() for word in visible.split(",")):
        index = _index(uuids, entry)
        if index is None or index in seen:
            return
        seen.add(index)
        yield index


def _index(uuids: tuple[str, ...], entry: str) -> int | None:
    if entry.isdigit():
        return int(entry) if int(entry) < len(uuids) else None
    matches = [index for index, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _card(nvml: Any, handle: Any, driver: str) -> DeviceSpec:
    product = str(nvml.nvmlDeviceGetName(handle))
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    # NVML's total counts what the driver reserves, CUDA's does not, and a process cannot have it: on an RTX 4090
    # 24,564 MiB of which 354 are reserved, and 24,210 in CUDA.
    usable_bytes = int(memory.total - memory.reserved)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    listed = match_device(product, usable_bytes)
    return DeviceSpec(
        name=product if listed is None else listed.name,
        kind=CUDA,
        memory_bytes=usable_bytes,
        compute_capability=(int(major), int(minor)),
        memory_bandwidth_bytes_per_s=None if listed is None else listed.memory_bandwidth_bytes_per_s,
        source=f"this host: {product}, driver {driver}",
    )
