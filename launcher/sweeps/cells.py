"""The cells of a sweep: planned jobs under numbers and run ids of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from launcher.report.sweep_table import CellResult
from launcher.runs.registry import new_run_id
from launcher.runs.sweeps import Cell
from launcher.workflow import Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """One planned job of a sweep. number counts from 0 over the whole sweep."""

    number: int
    run_id: str
    prepared: Prepared

    @property
    def record(self) -> Cell:
        """What the sweep keeps of it."""
        return Cell(
            number=self.number,
            overrides=self.prepared.overrides,
            run_id=self.run_id,
            verdict=self.prepared.plan.verdict.value,
            dropped=self.prepared.refused,
        )


def number_cells(prepared: Sequence[Prepared], *, first: int, now: datetime, token: str) -> tuple[PlannedCell, ...]:
    """The jobs as cells from number `first` on. token: the sweep's; with the number it makes every run id another."""
    return tuple(
        PlannedCell(number=number, run_id=new_run_id(job.plan.spec, now, f"{token}-{number:03d}"), prepared=job)
        for number, job in enumerate(prepared, start=first)
    )


def unwaited(cells: Sequence[PlannedCell]) -> list[CellResult]:
    """What the sweeper is told of cells that nobody waits for."""
    return [
        CellResult(
            number=cell.number,
            overrides=cell.prepared.overrides,
            plan=cell.prepared.plan,
            outcome=None,
            is_dropped=cell.prepared.refused,
        )
        for cell in cells
    ]
