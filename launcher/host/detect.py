"""This host: its GPUs, cores and RAM, as far as a process started now may use them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from launcher.host import cgroup
from launcher.host.nvml import detect_gpus
from launcher.spec import DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What one host offers. Limits of the control group are counted in.

    gpu: the card every rank is planned for; of mixed cards the one with the least memory. gpu_names: all of them.
    gpu_problem: why no GPU could be found, in NVML's words, or None.
    """

    hostname: str
    num_gpus: int
    gpu: DeviceSpec | None
    gpu_names: tuple[str, ...]
    gpu_driver: str | None
    gpu_problem: str | None
    num_cores: int
    ram_total_bytes: int
    ram_available_bytes: int


def detect_host(*, env: Mapping[str, str] | None = None, nvml: Any = pynvml, root: Path = cgroup.ROOT) -> Host:
    """Ask the driver, the kernel and the control group. env, nvml and root (of /proc and /sys) are for tests."""
    gpus = detect_gpus(os.environ if env is None else env, nvml)
    memory = psutil.virtual_memory()
    limit, left = cgroup.memory_limit_bytes(root), cgroup.memory_left_bytes(root)
    return Host(
        hostname=socket.gethostname(),
        num_gpus=len(gpus.cards),
        gpu=min(gpus.cards, key=lambda card: card.memory_bytes or 0, default=None),
        gpu_names=tuple(card.name for card in gpus.cards),
        gpu_driver=gpus.driver,
        gpu_problem=gpus.problem,
        num_cores=usable_cores(len(os.sched_getaffinity(0)), cgroup.core_limit(root)),
        ram_total_bytes=memory.total if limit is None else min(memory.total, limit),
        ram_available_bytes=memory.available if left is None else min(memory.available, left),
    )


def usable_cores(num_in_affinity: int, quota: int | None) -> int:
    """Cores that can run at the same time: those of the affinity mask, unless the quota allows fewer."""
    return num_in_affinity if quota is None else min(num_in_affinity, quota)
