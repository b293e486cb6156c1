"""Read the markers that the ranks of one attempt left; they, and not exit codes, say how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from launcher.runs.layout import RunFolder
from launcher.runs.records import Failed, Finished, NodeEnd, RankMeasurement, Started, Stopped, read_record

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """What is there. failures by time, measurements by rank."""

    started: Started | None
    finished: Finished | None
    stopped: Stopped | None
    failures: tuple[Failed, ...]
    measurements: tuple[RankMeasurement, ...]


def read_markers(run: RunFolder, attempt: int) -> Markers:
    """All markers of one attempt."""
    return Markers(
        started=read_record(run.started(attempt), Started),
        finished=read_record(run.finished(attempt), Finished),
        stopped=read_record(run.stopped(attempt), Stopped),
        failures=tuple(sorted(_read_all(run, attempt, "failed", Failed), key=lambda failure: failure.time_s)),
        measurements=tuple(
            sorted(_read_all(run, attempt, "measured", RankMeasurement), key=lambda measured: measured.rank)
        ),
    )


def has_failure(run: RunFolder, attempt: int) -> bool:
    """Whether a rank has written that it failed; cheap enough to ask often."""
    return any(run.attempt(attempt).glob("failed-rank-*.json"))


def has_result(run: RunFolder, attempt: int) -> bool:
    """Whether the ranks have written that they finished, or stopped."""
    return run.finished(attempt).exists() or run.stopped(attempt).exists()


def read_node_ends(run: RunFolder, attempt: int) -> tuple[NodeEnd, ...]:
    """How the nodes of an attempt ended, those whose agents could write it, by their number."""
    ends = (read_record(path, NodeEnd) for path in run.attempt(attempt).glob("node-*/end.json"))
    return tuple(sorted((end for end in ends if end is not None), key=lambda end: end.node_rank))


def _read_all(run: RunFolder, attempt: int, prefix: str, kind: type[T]) -> list[T]:
    return [
        msgspec.json.decode(path.read_bytes(), type=kind) for path in run.attempt(attempt).glob(f"{prefix}-rank-*.json")
    ]
