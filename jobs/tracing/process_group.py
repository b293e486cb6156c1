"""The other ranks: torch's fake process group, whose collectives return at once and change nothing.

Their results have the right sizes, which is what memory depends on. Objects and sums that the job decides by are
answered as if every rank had said what this one says (torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from jobs.tracing.target import Target


def install(target: Target) -> None:
    """Join a fake group as the target's rank."""
    dist.init_process_group("fake", store=FakeStore(), rank=target.rank, world_size=target.world_size)
    for module in (dist, dist.distributed_c10d):
        module.all_gather_object = _all_gather_object
        module.broadcast_object_list = _nothing
        module.gather_object = _gather_object
        module.barrier = _nothing
        module.monitored_barrier = _nothing


def _all_gather_object(objects: list[Any], value: Any, group: Any = None) -> None:
    del group
    objects[:] = [value] * len(objects)


def _gather_object(value: Any, objects: list[Any] | None = None, *_: Any, **__: Any) -> None:
    if objects is not None:
        objects[:] = [value] * len(objects)


def _nothing(*_: Any, **__: Any) -> None:
    return None
