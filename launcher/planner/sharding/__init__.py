"""How each sharding splits what a job holds, and the buffers it adds: one file each, all with the same functions.

rank_classes(work): the ranks, gathered by equal plans, each class with the rank that is planned for it.
terms(work, rank): weights, gradients, optimizer states and buffers of a rank that do not depend on the moment, but for
own_terms(work, rank): those in which classes of ranks differ.
terms_at(work, rank, moment): those that do, from the loss on.
after_evaluation(work, moment): what a step that follows an evaluation, as the first does, has gathered at a moment;
None where that is the same as in any step.
first_steps(work): the first steps where they differ in more than states and what an evaluation leaves.
GATHERS: the points of a forward pass, besides its blocks, at which gathering can make it the highest.
fullest_block(work, moment): the block, counted from 1, in which a forward pass is at its highest.
forward_terms(work, moment): what is gathered at a point of a forward pass, a step's or an evaluation's.
"""

from __future__ import annotations

from typing import Protocol

from launcher.planner.moments import Moment, Point
from launcher.planner.sharding import ddp, fsdp, zero2, zero3
from launcher.planner.types import Term
from launcher.planner.workload import Workload
from launcher.spec import ShardKind


class Passing(Protocol):
    """What there is at the moments of a step."""

    @property
    def GATHERS(self) -> tuple[Point, ...]: ...  # noqa: N802 - a constant of the module

    def terms_at(self, work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]: ...

    def fullest_block(self, work: Workload, moment: Moment) -> int: ...

    def forward_terms(self, work: Workload, moment: Moment) -> tuple[Term, ...]: ...


class FirstStep(Passing, Protocol):
    """One of the first steps. has_states: whether the optimizer has made its states by its beginning."""

    @property
    def has_states(self) -> bool: ...


class Sharding(Passing, Protocol):
    """What a module of this package offers."""

    def rank_classes(self, work: Workload) -> tuple[tuple[range, int], ...]: ...

    def terms(self, work: Workload, rank: int) -> tuple[Term, ...]: ...

    def own_terms(self, work: Workload, rank: int) -> tuple[Term, ...]: ...

    def after_evaluation(self, work: Workload, moment: Moment) -> tuple[Term, ...] | None: ...

    def first_steps(self, work: Workload) -> tuple[FirstStep, ...]: ...


SHARDINGS: dict[ShardKind, Sharding] = {
    ShardKind.DDP: ddp,
    ShardKind.FSDP: fsdp,
    ShardKind.ZERO2: zero2,
    ShardKind.ZERO3: zero3,
}
