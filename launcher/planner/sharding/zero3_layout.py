"""How ZeRO-3 cuts parameters into the partitions of ranks, and these into sub-groups.

Source: deepspeed 0.19.8 runtime/zero/stage3.py and partition_parameters.py.
"""

from __future__ import annotations

from functools import lru_cache

from launcher.planner import quantisation
from launcher.planner.inventory import Held, Inventory, State
from launcher.planner.sharding import flat
from launcher.planner.sharding.rows import TRAINED, storage_bytes
from launcher.planner.workload import Workload
from launcher.units import ceil_div

PARTITIONS = "deepspeed 0.19.8 runtime/zero/partition_parameters.py"


def stored(work: Workload, parameter: Held) -> tuple[int, int]:
    """Elements and bytes an element as the module holds it."""
    if parameter.state is State.QUANTISED:
        width = storage_bytes(work)
        return ceil_div(quantisation.packed_bytes(parameter.numel), width), width
    return parameter.numel, work.stored_dtype(parameter.state).num_bytes


def is_persistent(work: Workload, parameter: Held) -> bool:
    """Small parameters stay gathered for the whole run."""
    assert work.spec.shard.param_persistence_threshold is not None
    return stored(work, parameter)[0] <= work.spec.shard.param_persistence_threshold


def shard_bytes(work: Workload, state: State) -> int:
    """One rank's partitions of all parameters in a state."""
    total = 0
    for parameter, count in work.inventory.counted(state):
        numel, width = stored(work, parameter)
        total += count * ceil_div(numel, work.world_size) * width
    return total


def partition_numel(work: Workload) -> int:
    """Trained elements of one rank, padding included."""
    return sum(count * ceil_div(p.numel, work.world_size) for p, count in work.inventory.counted(*TRAINED))


def sub_group_numels(work: Workload) -> tuple[int, ...]:
    """Trained elements of one rank in each sub-group: those are stepped one at a time."""
    limit = work.spec.shard.sub_group_size
    assert limit is not None
    return _sub_groups(work.inventory, work.world_size, limit)


@lru_cache(maxsize=64)
def _sub_groups(inventory: Inventory, world_size: int, limit: int) -> tuple[int, ...]:
    """A sub-group is closed by the parameter with which it reaches the limit (_create_fp16_sub_groups); norms and
    biases are a group of their own."""
    found: list[int] = []
    filling = 0
    for numel in flat.matrices(inventory):
        filling += ceil_div(numel, world_size)
        if filling >= limit:
            found.append(filling)
            filling = 0
    no_decay = ceil_div(flat.no_decay_numel(inventory), world_size)
    return tuple(numel for numel in (*found, filling, no_decay) if numel)


def sub_group_numel(work: Workload) -> int:
    """Those of the largest."""
    return max(sub_group_numels(work), default=0)
