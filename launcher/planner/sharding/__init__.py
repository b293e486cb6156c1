"""How each sharding splits what a job holds, and the buffers it adds: one file each, all with the same two functions.

rank_classes(work): the ranks, gathered by equal plans.
terms(work, rank, moment): weights, gradients, optimizer states and buffers of the class that `rank` belongs to.
"""

from __future__ import annotations

from typing import Protocol

from launcher.planner.gradients import Moment
from launcher.planner.sharding import ddp, fsdp, zero2, zero3
from launcher.planner.types import Term
from launcher.planner.workload import Workload
from launcher.spec import ShardKind


class Sharding(Protocol):
    """What a module of this package offers."""

    def rank_classes(self, work: Workload) -> tuple[tuple[int, ...], ...]: ...

    def terms(self, work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]: ...


SHARDINGS: dict[ShardKind, Sharding] = {
    ShardKind.DDP: ddp,
    ShardKind.FSDP: fsdp,
    ShardKind.ZERO2: zero2,
    ShardKind.ZERO3: zero3,
}
