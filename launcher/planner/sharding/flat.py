"""Where the trained matrices lie when DeepSpeed lays them end to end, and which of them a rank's partition touches.

The Trainer gives the optimizer two groups: matrices, and what has no weight decay (norms, biases). Each is flattened
and partitioned by itself; the second is too small to matter here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, pairwise

from launcher.models import Role
from launcher.planner.inventory import Held, Inventory
from launcher.units import ceil_div, round_up

ALIGNMENT = 2  # deepspeed 0.19.8 runtime/zero/stage_1_and_2.py nccl_start_alignment_factor
NO_DECAY = (Role.NORM, Role.BIAS)
SEARCHED_RANKS = 64


def partition_numel(numel: int, world_size: int) -> int:
    """Elements of one rank's partition of a group, padding included."""
    return ceil_div(round_up(numel, ALIGNMENT * world_size), world_size)


@lru_cache(maxsize=64)
def ends(inventory: Inventory) -> tuple[int, ...]:
    """Where each trained matrix ends, in elements: the embedding, the blocks, the head."""
    return tuple(accumulate(matrices(inventory)))


def matrices(inventory: Inventory) -> Iterable[int]:
    """Elements of each trained matrix, in this order."""
    return (p.numel for p in _in_order(inventory))


@lru_cache(maxsize=64)
def no_decay_numel(inventory: Inventory) -> int:
    """Elements of the second group."""
    return sum(p.numel * count for p, count in inventory.counted() if p.state.is_trained and p.role in NO_DECAY)


def _in_order(inventory: Inventory) -> Iterable[Held]:
    root = [p for p in inventory.root.trained if p.role not in NO_DECAY]
    yield from (p for p in root if p.role is not Role.HEAD)
    for block in inventory.blocks:
        matrices = [p for p in block.trained if p.role not in NO_DECAY]
        for _ in range(block.copies):
            yield from matrices
    yield from (p for p in root if p.role is Role.HEAD)


@lru_cache(maxsize=256)
def touched_numel(inventory: Inventory, world_size: int, rank: int) -> int:
    """Elements of the matrices that a rank's partition touches, whole: of those at its ends a part is another's."""
    found = ends(inventory)
    if not found:
        return 0
    size = partition_numel(found[-1], world_size)
    begin, end = rank * size, min((rank + 1) * size, found[-1])
    if begin >= end:
        return 0
    first, last = bisect_right(found, begin), bisect_left(found, end)
    return found[last] - (found[first - 1] if first else 0)


@lru_cache(maxsize=256)
def largest_slice_numel(inventory: Inventory, world_size: int, rank: int) -> int:
    """Elements of the largest piece of one matrix in a rank's partition."""
    found = ends(inventory)
    if not found:
        return 0
    size = partition_numel(found[-1], world_size)
    begin, end = rank * size, min((rank + 1) * size, found[-1])
    first, last = bisect_right(found, begin), bisect_left(found, end)
    edges = [begin, *found[first:last], end]
    return max((after - before for before, after in pairwise(edges)), default=0)


@lru_cache(maxsize=64)
def fullest_rank(inventory: Inventory, world_size: int) -> int:
    """The rank whose partition touches the most; among very many, of the first and the last ones, which hold the
    embedding and the head."""
    half = SEARCHED_RANKS // 2
    ranks = range(world_size)
    searched = ranks if world_size <= SEARCHED_RANKS else (*ranks[:half], *ranks[-half:])
    return max(searched, key=lambda rank: touched_numel(inventory, world_size, rank))
