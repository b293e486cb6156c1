"""Every method under every sharding: on how many GPUs it fits, and what it then needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.errors import InputError
from launcher.fitting.largest import largest_micro_batch, longest_sequence
from launcher.fitting.types import Refusal, Row
from launcher.fitting.words import Question
from launcher.planner.cards import GPUS_PER_NODE, smallest_card
from launcher.planner.estimate import Estimate, Estimator, micro_batches
from launcher.planner.host import host_ram_bytes_per_node
from launcher.planner.timing import step_time
from launcher.planner.types import Verdict
from launcher.rules import OFFLOADS
from launcher.spec import DeviceSpec, JobSpec, MethodKind, Offload, ShardKind

SHARDS = (ShardKind.DDP, ShardKind.ZERO2, ShardKind.FSDP, ShardKind.ZERO3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A place in the grid."""

    method: MethodKind
    shard: ShardKind
    offload: Offload


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A cell on some number of GPUs: its job as the words mean it, and its estimate with the smallest micro batch."""

    cell: Cell
    overrides: tuple[str, ...]
    spec: JobSpec
    least: Estimate

    @property
    def fits(self) -> bool:
        """Whether it fits, or there is no card to hold it against."""
        return self.least.verdict in (Verdict.FITS, Verdict.NO_CARD)


class Grid:
    """The grid of one question."""

    def __init__(self, asked: Question, estimator: Estimator, spec: JobSpec, cards: Sequence[DeviceSpec]) -> None:
        self.asked = asked
        self.estimator = estimator
        self.spec = spec
        self.cards = cards
        self.refused: list[Refusal] = []

    def rows(self) -> tuple[Row, ...]:
        """The rows by method; without offload first, and with it only where that needs fewer GPUs."""
        found = [cell for method in self._methods() for cell in self._of_method(method)]
        rows = [self._row(cell) for cell in found]
        quickest = min((row.time_ratio for row in rows if row.time_ratio is not None), default=1.0)
        return tuple(
            dataclasses.replace(row, time_ratio=None if row.time_ratio is None else row.time_ratio / quickest)
            for row in rows
        )

    def _methods(self) -> tuple[MethodKind, ...]:
        return (self.spec.method.kind,) if "method" in self.asked.keys else tuple(MethodKind)

    def _shards(self) -> tuple[ShardKind, ...]:
        return (self.spec.shard.kind,) if "shard" in self.asked.keys else SHARDS

    def _of_method(self, method: MethodKind) -> Iterator[Found]:
        if "shard.offload" in self.asked.keys:
            given = self.spec.shard.offload
            kinds = (kind for kind in self._shards() if given in OFFLOADS[kind])
            yield from filter(None, (self._fewest(Cell(method=method, shard=kind, offload=given)) for kind in kinds))
            return
        plain = [self._fewest(Cell(method=method, shard=kind, offload=Offload.NONE)) for kind in self._shards()]
        made = [found for found in plain if found is not None]
        yield from made
        fewest = min((found.spec.gpus_per_node for found in made if found.fits), default=None)
        if self.spec.device.kind != "cuda":
            return
        for kind in self._shards():
            for offload in OFFLOADS[kind][1:]:
                found = self._fewest(Cell(method=method, shard=kind, offload=offload))
                if found is not None and found.fits and (fewest is None or found.spec.gpus_per_node < fewest):
                    yield found
                    break

    def _fewest(self, cell: Cell) -> Found | None:
        """The cell on the fewest GPUs that hold it, or else on the most; None, and a refusal, where rules forbid it."""
        best: Found | None = None
        problem: InputError | None = None
        for gpus in self._counts(cell):
            try:
                found = self._found(cell, gpus)
            except InputError as error:
                problem = problem or error
                continue
            best = found
            if found.fits:
                break
        if best is None and problem is not None:
            reason = "; ".join(map(str, problem.problems))
            self.refused.append(Refusal(overrides=self._overrides(cell, None), reason=reason))
        return best

    def _counts(self, cell: Cell) -> tuple[int | None, ...]:
        """The numbers of GPUs a node to try; None is what the words say. DDP holds the same on every number of them."""
        if "gpus" in self.asked.keys or self.spec.device.kind != "cuda":
            return (None,)
        host = self.asked.host
        most = host.num_gpus if host.gpu is not None and host.gpu.name == self.spec.device.name else GPUS_PER_NODE[-1]
        counts = tuple(count for count in GPUS_PER_NODE if count <= most)
        if cell.shard is ShardKind.DDP:
            return counts[:1]
        alone = self.spec.nodes == 1 and cell.offload is Offload.NONE  # one rank has nothing to shard over
        return counts[1:] if alone and len(counts) > 1 else counts

    def _overrides(self, cell: Cell, gpus: int | None) -> tuple[str, ...]:
        """The words that make a cell's job of the question."""
        keys = self.asked.keys
        words = [f"method={cell.method}"] if "method" not in keys else []
        words += [f"shard={cell.shard}"] if "shard" not in keys else []
        words += (
            [f"shard.offload={cell.offload}"]
            if cell.offload is not Offload.NONE and "shard.offload" not in keys
            else []
        )
        return (*words, *([] if gpus is None else [f"gpus={gpus}"]))

    def _found(self, cell: Cell, gpus: int | None) -> Found:
        overrides = self._overrides(cell, gpus)
        spec = self.asked.spec(*overrides)
        least = self.estimator.estimate(spec.with_micro_batch(spec.train.micro_batch or 1))
        return Found(cell=cell, overrides=overrides, spec=spec, least=least)

    def _with_its_micro_batch(self, found: Found) -> Estimate:
        """The estimate with the micro batch that a plan takes: the least is tried already."""
        if found.spec.train.micro_batch is not None or not found.least.fits:
            return found.least
        return self.estimator.largest(found.spec, micro_batches(found.spec)[1:]) or found.least

    def _row(self, found: Found) -> Row:
        spec, least = found.spec, found.least
        has_card, fits = spec.device.memory_bytes is not None, least.fits
        best = self._with_its_micro_batch(found)
        seconds = step_time(best.work).seconds_per_token * spec.world_size if fits else None
        return Row(
            method=found.cell.method,
            shard=found.cell.shard,
            offload=found.cell.offload,
            gpus_per_node=spec.gpus_per_node,
            nodes=spec.nodes,
            overrides=found.overrides,
            process_bytes=least.need.process_bytes,
            high_bytes=least.need.high_bytes,
            host_ram_bytes_per_node=host_ram_bytes_per_node(best.work, best.need.process_bytes),
            verdict=least.verdict,
            micro_batch=best.spec.micro_batch,
            largest_micro_batch=largest_micro_batch(self.estimator, least) if fits else None,
            longest_sequence=longest_sequence(self.estimator, least) if fits else None,
            time_ratio=seconds,
            smallest_card=None if has_card else smallest_card(self.estimator, best.spec, self.cards),
        )
