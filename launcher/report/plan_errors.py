"""How far the plans of past runs were off, run by run and over all of them; from each run's report.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.report.record import RankMemory, Report
from launcher.runs.layout import RunFolder
from launcher.runs.records import read_record

MEASURES = ("allocated", "reserved", "process")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanError:
    """One amount of a run's fullest rank, planned and measured, in bytes."""

    planned_bytes: int
    measured_bytes: int

    @property
    def percent(self) -> float:
        """In per cent of what was measured, to a tenth; '+' means planned too high."""
        return round(100 * (self.planned_bytes - self.measured_bytes) / self.measured_bytes, 1) + 0.0  # no -0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunErrors:
    """What a run's fullest rank was planned to need and needed; None where nothing was measured. reserved is None on a
    CPU, where process is the resident set. full_length: whether the measured sequences were as long as planned for."""

    planned_by: str
    rank: int
    full_length: bool
    allocated: PlanError | None
    reserved: PlanError | None
    process: PlanError | None


def run_errors(run_dir: Path) -> RunErrors | None:
    """The errors of a run's plan; None where there is no report, or nothing was measured."""
    try:
        report = read_record(RunFolder(run_dir).report, Report)
    except msgspec.DecodeError:
        return None  # of another version
    if report is None or not report.memory:
        return None
    fullest = max(report.memory, key=lambda memory: memory.measured_process_bytes or memory.measured_rss_bytes)
    return RunErrors(
        planned_by=report.planned_by,
        rank=fullest.rank,
        full_length=_is_full_length(report, fullest),
        allocated=_error(fullest.planned_allocated_bytes, fullest.measured_allocated_bytes),
        reserved=_error(fullest.planned_reserved_bytes, fullest.measured_reserved_bytes),
        process=_error(fullest.planned_process_bytes, fullest.measured_process_bytes),
    )


def _is_full_length(report: Report, memory: RankMemory) -> bool:
    tokens = memory.num_tokens_measured_step
    if tokens is None:
        return report.num_truncated_samples != 0
    return tokens >= report.num_tokens_planned_step


def _error(planned: int | None, measured: int | None) -> PlanError | None:
    return PlanError(planned_bytes=planned, measured_bytes=measured) if planned is not None and measured else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Signed errors over several runs, in per cent."""

    count: int
    median: float
    lowest: float
    highest: float


def summary(errors: Sequence[RunErrors], measure: str) -> Summary | None:
    """Over the runs in which this was measured; None where there is none."""
    found = [error.percent for error in (getattr(run, measure) for run in errors) if error is not None]
    if not found:
        return None
    return Summary(count=len(found), median=statistics.median(found), lowest=min(found), highest=max(found))
