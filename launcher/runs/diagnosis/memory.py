"""The numbers in an out-of-memory message, beside what was planned.

torch 2.13 (c10/cuda/CUDACachingAllocator.cpp): 'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total
capacity of 23.65 GiB of which 1.66 GiB is free. Including non-PyTorch memory, this process has 21.98 GiB memory in
use. Of the allocated memory 12.09 GiB is allocated by PyTorch, ...'. On a CPU (c10/core/impl/alloc_cpu.cpp):
'DefaultCPUAllocator: can't allocate memory: you tried to allocate 1024 bytes.'
"""

from __future__ import annotations

import re

from launcher.runs.diagnosis.types import MEMORY, Evidence, Failure, MemoryUse
from launcher.units import GIB, KIB, MIB

UNITS = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": KIB * GIB, "PiB": MIB * GIB}
SIZE = r"([\d.]+) (bytes|[KMGTP]iB)"
TRIED = re.compile(rf"[Tt]ried to allocate {SIZE}")
CAPACITY = re.compile(rf"total capacit?y of {SIZE}")
IN_USE = re.compile(rf"this process has {SIZE} memory in use")
ALLOCATED = re.compile(rf"{SIZE} is allocated by PyTorch")


def memory_use(failure: Failure, evidence: Evidence) -> MemoryUse | None:
    """Planned beside measured, where the failure was for want of memory."""
    if failure.kind not in MEMORY:
        return None
    return MemoryUse(
        tried_bytes=_size(TRIED, failure.message),
        in_use_bytes=_size(IN_USE, failure.message),
        allocated_bytes=_size(ALLOCATED, failure.message),
        capacity_bytes=_size(CAPACITY, failure.message),
        planned_bytes=evidence.planned_bytes,
        planned_phase_bytes=evidence.planned_phase_bytes.get(failure.phase),
    )


def _size(pattern: re.Pattern[str], message: str) -> int | None:
    found = pattern.search(message)
    return None if found is None else round(float(found[1]) * UNITS[found[2]])
