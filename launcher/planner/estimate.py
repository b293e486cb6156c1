"""One job at one micro batch: its ranks and what the worst of them needs. The search for what fits is made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.models import ModelShape
from launcher.planner.constants import Constants, listed_constants
from launcher.planner.inventory import Inventory, inventory
from launcher.planner.practice import OURS, Practice, practised
from launcher.planner.ranks import rank_plans
from launcher.planner.types import RankPlan, Verdict
from launcher.planner.verdict import Need, need, verdict
from launcher.planner.workload import Workload
from launcher.precision import dtypes
from launcher.spec import JobSpec, MethodSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A job with its micro batch chosen, and the answer for it."""

    work: Workload
    ranks: tuple[RankPlan, ...]
    need: Need
    verdict: Verdict

    @property
    def spec(self) -> JobSpec:
        return self.work.spec

    @property
    def fits(self) -> bool:
        return self.verdict is Verdict.FITS


class Estimator:
    """Estimates jobs of one model, run as `practice` says; the inventory of each method is made once.

    constants: what no formula gives; those that the project ships where none are named.
    """

    def __init__(self, shape: ModelShape, practice: Practice = OURS, constants: Constants | None = None) -> None:
        self.shape = shape
        self.practice = practice
        self.constants = listed_constants() if constants is None else constants
        self._inventories: dict[MethodSpec, Inventory] = {}

    def workload(self, spec: JobSpec) -> Workload:
        """What the formulas read of a job whose micro batch is chosen."""
        return Workload(
            spec=spec,
            shape=self.shape,
            inventory=self._inventory(spec),
            dtypes=practised(dtypes(spec), self.practice),
            practice=self.practice,
            constants=self.constants,
        )

    def estimate(self, spec: JobSpec) -> Estimate:
        """The answer for a job whose micro batch is chosen."""
        work = self.workload(spec)
        ranks = rank_plans(work)
        worst = max(ranks, key=lambda rank: rank.allocated_bytes + rank.outside_bytes)
        found = need(spec, worst, self.constants, self.practice)
        return Estimate(work=work, ranks=ranks, need=found, verdict=verdict(found, spec.device.memory_bytes))

    def best(self, spec: JobSpec) -> Estimate:
        """The answer with the micro batch that was asked for, or else the largest that fits; 1 when none does.

        Without a card to fit, it is 1: that is what the smallest possible card would run, and accumulation makes up
        the global batch.
        """
        if spec.train.micro_batch is not None:
            return self.estimate(spec)
        return self.largest(spec, micro_batches(spec)) or self.estimate(spec.with_micro_batch(1))

    def largest(self, spec: JobSpec, sizes: Sequence[int]) -> Estimate | None:
        """The answer with the largest of some micro batches, smallest first, that fits; None when none does."""
        found: Estimate | None = None
        low, high = -1, len(sizes) - 1
        middle = 0  # most jobs that fit at all were given room: the smallest decides first
        while low < high:  # memory grows with the micro batch: bisect
            tried = self.estimate(spec.with_micro_batch(sizes[middle]))
            if tried.fits:
                found, low = tried, middle
            else:
                high = middle - 1
            middle = (low + high + 1) // 2
        return found

    def _inventory(self, spec: JobSpec) -> Inventory:
        if spec.method not in self._inventories:
            self._inventories[spec.method] = inventory(spec, self.shape)
        return self._inventories[spec.method]


def micro_batches(spec: JobSpec) -> tuple[int, ...]:
    """The micro batches that divide a rank's share of the global batch, smallest first."""
    per_rank = spec.train.global_batch // spec.world_size
    return tuple(size for size in range(1, per_rank + 1) if per_rank % size == 0)
