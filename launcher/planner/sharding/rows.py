"""FSDP2's layout: every parameter split over the ranks by the rows of its first dimension.

Source: torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py: torch.chunk along the first dimension, shards padded to
equal rows. Only what the optimizer makes follows a rank's real rows, so that the last ranks can hold less.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from launcher.planner import quantisation
from launcher.planner.inventory import Block, Held, Inventory, State
from launcher.planner.types import TermKind
from launcher.planner.workload import Workload
from launcher.spec import Dtype
from launcher.units import ceil_div

TRAINED = (State.TRAINED, State.ADAPTER)
KINDS = {
    State.TRAINED: TermKind.WEIGHTS,
    State.FROZEN: TermKind.WEIGHTS,
    State.QUANTISED: TermKind.WEIGHTS,
    State.ADAPTER: TermKind.ADAPTERS,
}


def rank_classes(work: Workload) -> tuple[tuple[range, int], ...]:
    """Ranks by how many trained rows they really have."""
    return _classes(work.inventory, work.world_size)


@lru_cache(maxsize=64)
def _classes(inventory: Inventory, world_size: int) -> tuple[tuple[range, int], ...]:
    """A tensor's first ranks have a whole share, one may have what is left, and the others none: between those borders
    all ranks are alike."""
    borders = {0, world_size}
    for rows in {p.shape[0] for p, _ in inventory.counted(*TRAINED)}:
        whole = rows // ceil_div(rows, world_size)
        borders |= {min(whole, world_size), min(whole + 1, world_size)}
    cuts = sorted(borders)
    ranges = [range(begin, end) for begin, end in itertools.pairwise(cuts)]
    return tuple((ranks, ranks[0]) for ranks in _joined(inventory, world_size, ranges))


def _joined(inventory: Inventory, world_size: int, ranges: list[range]) -> list[range]:
    """Neighbours that hold equally much, as one."""
    found: list[range] = []
    last = -1
    for ranks in ranges:
        numel = sum(n * count for n, count in _local_tensors(inventory, world_size, ranks[0]))
        if found and numel == last:
            found[-1] = range(found[-1].start, ranks.stop)
        else:
            found.append(ranks)
        last = numel
    return found


def local_tensors(work: Workload, rank: int) -> tuple[tuple[int, int], ...]:
    """Trained elements of one rank, tensor by tensor, with how often such a tensor occurs."""
    return _local_tensors(work.inventory, work.world_size, rank)


@lru_cache(maxsize=256)
def _local_tensors(inventory: Inventory, world_size: int, rank: int) -> tuple[tuple[int, int], ...]:
    return tuple((local_numel(p.shape, world_size, rank), count) for p, count in inventory.counted(*TRAINED))


def local_numel(shape: tuple[int, ...], world_size: int, rank: int) -> int:
    """Elements of one rank: torch.chunk along the first dimension, so that the last chunks may be short or empty."""
    rows_per_rank = ceil_div(shape[0], world_size)
    rows = min(max(shape[0] - rank * rows_per_rank, 0), rows_per_rank)
    return rows * _row_numel(shape)


def padded_numel(shape: tuple[int, ...], world_size: int) -> int:
    """Elements of one rank's shard as stored: every rank has as many rows as the first."""
    return ceil_div(shape[0], world_size) * _row_numel(shape)


def _row_numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def stored(work: Workload, parameter: Held) -> tuple[tuple[int, ...], int]:
    """Shape and bytes an element as the module holds it: a 4-bit weight is one column of its storage dtype."""
    if parameter.state is State.QUANTISED:
        width = storage_bytes(work)
        return (ceil_div(quantisation.packed_bytes(parameter.numel), width),), width
    return parameter.shape, work.stored_dtype(parameter.state).num_bytes


def storage_bytes(work: Workload) -> int:
    """Bytes of the dtype in which 4-bit values are packed."""
    return (work.spec.method.storage_dtype or Dtype.UINT8).num_bytes


def shard_bytes(work: Workload, state: State) -> int:
    """One rank's padded shards of all parameters in a state."""
    total = 0
    for parameter, count in work.inventory.counted(state):
        shape, width = stored(work, parameter)
        total += count * padded_numel(shape, work.world_size) * width
    return total


def gathered_bytes(work: Workload, block: Block) -> int:
    """One block gathered for use, in the dtype it is used in, padding included."""
    total = 0
    for parameter in block.parameters:
        shape, width = stored(work, parameter)
        if parameter.state is not State.QUANTISED:
            width = work.gathered_bytes(parameter.state)
        total += padded_numel(shape, work.world_size) * work.world_size * width
    return total


def reduced_numel(work: Workload, block: Block) -> int:
    """Trained elements of one block as reduce-scatter takes them, padding included."""
    return sum(padded_numel(p.shape, work.world_size) for p in block.trained) * work.world_size


@lru_cache(maxsize=16)
def largest_reduced_numel(work: Workload) -> int:
    """Those of the largest block."""
    return max(reduced_numel(work, block) for block in work.inventory.blocks)


def reduce_bytes(work: Workload) -> int:
    """Bytes of the reduce dtype: fp32 in mixed precision, else that of the gradients."""
    return Dtype.FLOAT32.num_bytes if work.is_mixed else work.compute_bytes
