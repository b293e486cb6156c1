"""Find what makes a job fit, the cheapest in time first.

Times come from launcher.planner.timing and are cheap, sizes from the estimator and are not: so the combinations wait in
a queue by the time they would take with the largest micro batch there is, and only the one in front is planned. Once
its real micro batch is known it goes back into the queue with its real time, and what comes out a second time is the
cheapest of all that fit.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launcher.planner.estimate import Estimate, Estimator, micro_batches
from launcher.planner.fit.altering import kinds
from launcher.planner.fit.change import Change, applied
from launcher.planner.fit.equivalent import settings, smaller_micro_batch
from launcher.planner.host import host_ram_bytes_per_node
from launcher.planner.timing import step_time
from launcher.planner.types import Suggestion
from launcher.spec import JobSpec, Offload
from launcher.units import format_bytes

MOST_SUGGESTIONS = 3
# Each further option to type counts as 5 % of time, so that of ways that the estimate cannot tell apart the simpler
# comes first.
COST_OF_A_CHANGE = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Changes that make a job fit, its estimate after them, and what it then costs beside the job as asked for."""

    changes: tuple[Change, ...]
    estimate: Estimate
    time_ratio: float
    cost: float

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to type."""
        return tuple(override for change in self.changes for override in change.overrides)

    @property
    def keys(self) -> frozenset[str]:
        """The options that are set."""
        return frozenset(key for change in self.changes for key in change.keys)

    def suggestion(self, *, changes_training: bool) -> Suggestion:
        """As it stands in a plan."""
        return Suggestion(
            overrides=self.overrides,
            process_bytes=self.estimate.need.process_bytes,
            time_ratio=self.time_ratio,
            changes_training=changes_training,
            note="; ".join((*(change.note for change in self.changes), *self._host_ram())),
        )

    def _host_ram(self) -> tuple[str, ...]:
        """What an offload takes of the host, which nobody here has asked for its size."""
        work = self.estimate.work
        if work.spec.shard.offload is Offload.NONE:
            return ()
        size_bytes = host_ram_bytes_per_node(work, self.estimate.need.process_bytes)
        return (f"{format_bytes(size_bytes)} of host RAM a node",)


def suggestions(estimator: Estimator, spec: JobSpec, found: Estimate) -> tuple[Suggestion, ...]:
    """Up to three ways to make a job fit. spec is the job as asked for, found its estimate."""
    search = Search(estimator, spec, found)
    same = list(_useful(search.ways(())))[:MOST_SUGGESTIONS]
    proposed = [way.suggestion(changes_training=False) for way in same]
    if len(proposed) < MOST_SUGGESTIONS:
        other = _useful(itertools.chain(same, search.altered()))
        proposed += [way.suggestion(changes_training=True) for way in other if way not in same]
    return tuple(proposed[:MOST_SUGGESTIONS])


def _useful(ways: Iterable[Way]) -> Iterator[Way]:
    """Without those that set all that an earlier one sets, and more: they are slower and further from what was asked.

    At most as many as are shown.
    """
    kept: list[Way] = []
    for way in ways:
        if any(earlier.keys < way.keys or set(earlier.overrides) <= set(way.overrides) for earlier in kept):
            continue
        kept.append(way)
        yield way
        if len(kept) == MOST_SUGGESTIONS:
            return


class Search:
    """The ways out for one job that does not fit."""

    def __init__(self, estimator: Estimator, spec: JobSpec, found: Estimate) -> None:
        self.estimator = estimator
        self.spec = spec
        self.asked = step_time(found.work).seconds_per_token

    def ways(self, base: tuple[Change, ...]) -> Iterator[Way]:
        """Every combination of equivalent changes after those of `base` that fits, the cheapest first."""
        start = applied(base, self.spec)
        order = itertools.count()
        queue: list[tuple[float, int, tuple[Change, ...], Way | None]] = []
        for chosen in settings(start, self.estimator.shape.hidden_size):
            changes = (*base, *chosen)
            job = applied(chosen, start).with_micro_batch(self._sizes(start)[-1])
            heapq.heappush(queue, (self._cost(job, changes)[1], next(order), changes, None))
        while queue:
            _, number, changes, way = heapq.heappop(queue)
            if way is not None:
                yield way
                continue
            way = self._way(changes)
            if way is not None:
                heapq.heappush(queue, (way.cost, number, way.changes, way))

    def altered(self) -> Iterator[Way]:
        """Of every kind of change of the training the mildest that fits alone, then with equivalent changes beside it;
        the cheapest first."""
        groups = kinds(self.spec)
        alone = [way for kind in groups if (way := next(filter(None, (self._alone(c) for c in kind)), None))]
        yield from sorted(alone, key=lambda way: way.cost)
        helped = [way for kind in groups if (way := self._helped(kind))]
        yield from sorted(helped, key=lambda way: way.cost)

    def _alone(self, change: Change) -> Way | None:
        estimate = self.estimator.best(change.apply(self.spec))
        return self._made((change,), estimate) if estimate.fits else None

    def _helped(self, kind: tuple[Change, ...]) -> Way | None:
        """The mildest of a kind that fits with equivalent changes; none is tried where the strongest does not."""
        strongest = next(self.ways((kind[-1],)), None)
        if strongest is None:
            return None
        return next((way for change in kind[:-1] if (way := next(self.ways((change,)), None))), strongest)

    def _way(self, changes: tuple[Change, ...]) -> Way | None:
        """The changes with the largest micro batch that fits; where one was asked for it is said, and not exceeded."""
        job = applied(changes, self.spec)
        estimate = self.estimator.largest(job, self._sizes(job))
        if estimate is None:
            return None
        asked, chosen = self.spec.train.micro_batch, estimate.spec.micro_batch
        if asked is not None and chosen != asked:
            changes = (*changes, smaller_micro_batch(chosen))
        return self._made(changes, estimate) if changes else None

    def _sizes(self, job: JobSpec) -> tuple[int, ...]:
        """The micro batches to choose from."""
        asked = self.spec.train.micro_batch
        return tuple(size for size in micro_batches(job) if asked is None or size <= asked)

    def _made(self, changes: tuple[Change, ...], estimate: Estimate) -> Way:
        ratio, cost = self._cost(estimate.spec, changes)
        return Way(changes=changes, estimate=estimate, time_ratio=ratio, cost=cost)

    def _cost(self, job: JobSpec, changes: tuple[Change, ...]) -> tuple[float, float]:
        """The time for a token beside that of the job as asked for; and what orders ways: GPU time, and the typing."""
        ratio = step_time(self.estimator.workload(job)).seconds_per_token / self.asked
        gpus = job.world_size / self.spec.world_size
        num_overrides = sum(len(change.overrides) for change in changes)
        return ratio, ratio * gpus * COST_OF_A_CHANGE**num_overrides
