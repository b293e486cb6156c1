"""From readings to constants: subtraction, in one place and tested without a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from launcher.planner.calibration import Amount
from launcher.planner.constants import Key
from launcher.readings import ContextReadings, NcclReadings, Reading
from launcher.runs.records import RankMeasurement
from launcher.spec import ShardKind

# The stages of jobs.calibrate.
CONTEXT, MATMUL, KERNELS = "context", "matmul", "kernels"
FIRST, SECOND = "first communicator", "second communicator"


def context_amounts(found: ContextReadings) -> tuple[Amount, ...]:
    """The context with the kernels of a step; and what the first matrix product allocated beside its result."""
    by_stage = {reading.stage: reading for reading in found.readings}
    workspace = by_stage[MATMUL].allocated_bytes - by_stage[CONTEXT].allocated_bytes
    return (
        Amount(key=Key.CUDA_CONTEXT, amount=by_stage[KERNELS].outside_bytes),
        Amount(key=Key.CUBLAS_WORKSPACE, amount=workspace),
    )


def nccl_amounts(found: NcclReadings) -> tuple[Amount, ...]:
    """A communicator is what the second one added; NCCL itself is what the first added beyond that. The rank that has
    the most counts."""
    communicator = max(_grown(rank, FIRST, SECOND) for rank in found.ranks)
    first = max(_grown(rank, KERNELS, FIRST) for rank in found.ranks)
    num_ranks = len(found.ranks)
    return (
        Amount(key=Key.NCCL_COMMUNICATORS, amount=communicator, num_ranks=num_ranks),
        Amount(key=Key.NCCL_BASE, amount=max(0, first - communicator), num_ranks=num_ranks),
    )


def by_collective(rank: Sequence[Reading]) -> tuple[tuple[str, int], ...]:
    """What each collective added on one rank, in the order they were run."""
    steps = itertools.pairwise(rank)
    return tuple((after.stage, after.outside_bytes - before.outside_bytes) for before, after in steps)


def _grown(rank: Sequence[Reading], before: str, after: str) -> int:
    """Growth between the last readings of two stages."""
    last = {reading.stage.partition(":")[0]: reading.outside_bytes for reading in rank}
    return last[after] - last[before]


def cpu_amounts(
    light: Mapping[ShardKind, Sequence[RankMeasurement]], heavy: Mapping[ShardKind, Sequence[RankMeasurement]]
) -> tuple[Amount, ...]:
    """The line through a light job and a heavy one: its slope is what is resident for each allocated byte, and what is
    left of the resident set, where it is the most, is the process.

    The slope is one for all shardings, since it is the C library's; a process is never planned below what was measured.
    """
    grown = [(_grown_most(light[shard], heavy[shard])) for shard in light]
    percent = max(100, 100 * sum(rss for rss, _ in grown) // sum(allocated for _, allocated in grown))
    process = {
        shard: max(m.rss_bytes - percent * m.allocated_bytes // 100 for m in (*light[shard], *heavy[shard]))
        for shard in light
    }
    amounts = tuple(Amount(key=Key.CPU_PROCESS, amount=size, shard=shard) for shard, size in process.items())
    return (*amounts, Amount(key=Key.CPU_SLACK, amount=percent))


def _grown_most(light: Sequence[RankMeasurement], heavy: Sequence[RankMeasurement]) -> tuple[int, int]:
    """By how much the resident and the allocated bytes of the fullest rank grew."""
    first, second = (max(ranks, key=lambda m: m.rss_bytes) for ranks in (light, heavy))
    return second.rss_bytes - first.rss_bytes, second.allocated_bytes - first.allocated_bytes
