"""Wait for the cells of a sweep on a cluster, as a sweeper that goes by their losses has to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from launcher.errors import Interrupted
from launcher.node.signals import collect_stop_requests
from launcher.report.sweep_progress import SweepProgress
from launcher.report.sweep_table import CellResult
from launcher.report.sweeps import Standing
from launcher.runs.called import sweep_command
from launcher.runs.layout import RunFolder
from launcher.runs.records import ENDED, Status
from launcher.runs.status import Queue
from launcher.runs.sweeps import SweepFolder, read_sweep
from launcher.runs.tail import RunTail
from launcher.sweeps.cells import PlannedCell
from launcher.sweeps.outcomes import outcome_of
from launcher.sweeps.standing import standings

# Short jobs are seen soon, and long ones do not burden the controller: a twentieth of what has passed.
FIRST_POLL_S = 1.0
LAST_POLL_S = 30.0
POLL_SHARE = 20
# Slurm forgets ended jobs, and shared folders show files late: only what stays unknown for this long is given up.
UNKNOWN_S = 120.0


class Follower:
    """Looks at a sweep's cells until all have ended; their rows tell on the way."""

    def __init__(
        self,
        folder: SweepFolder,
        cells: Sequence[PlannedCell],
        progress: SweepProgress,
        queue: Queue,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._numbers = {cell.number: index for index, cell in enumerate(cells) if not cell.prepared.refused}
        self._progress = progress
        self._queue = queue
        self._clock = clock
        self._unknown_since: dict[int, float] = {}
        self._tails = {
            number: RunTail(RunFolder(cells[index].prepared.runs_dir / cells[index].run_id))
            for number, index in self._numbers.items()
        }

    def look(self) -> bool:
        """One look; True when every cell has ended, or is given up."""
        sweep = read_sweep(self._folder)
        left = tuple(cell for cell in sweep.cells if cell.number in self._numbers)
        for each in standings(self._folder, dataclasses.replace(sweep, cells=left), self._queue):
            self._take(self._numbers[each.cell.number], each)
        self._progress.draw()
        return not self._numbers

    def _take(self, index: int, standing: Standing) -> None:
        number, row = standing.cell.number, self._progress.rows[index]
        assert standing.summary is not None, "what was submitted has a run folder"
        events, metrics = self._tails[number].read()
        row.update(events=events, metrics=metrics)
        if standing.status is Status.RUNNING and row.started_at_s is None:
            self._progress.started(index, f" as job {standing.summary.job_id}")
        if standing.status in ENDED or self._is_given_up(number, standing):
            del self._numbers[number]
            self._progress.ended(index, outcome_of(standing.summary))

    def _is_given_up(self, number: int, standing: Standing) -> bool:
        if standing.status is not Status.UNKNOWN or self._queue.jobs() is None:
            self._unknown_since.pop(number, None)
            return False
        return self._clock() - self._unknown_since.setdefault(number, self._clock()) > UNKNOWN_S


def follow_cells(folder: SweepFolder, cells: Sequence[PlannedCell], queue: Queue, console: Console) -> list[CellResult]:
    """Follow the submitted cells to their ends. A user's stop ends the following, not the jobs: Interrupted."""
    progress = SweepProgress(console, [cell.record for cell in cells])
    for index, cell in enumerate(cells):
        if cell.prepared.refused:
            progress.rows[index].note = "does not fit"
    started_s = time.monotonic()
    with collect_stop_requests() as requests, progress:
        follower = Follower(folder, cells, progress, queue)
        while not follower.look():
            wait_s = min(LAST_POLL_S, max(FIRST_POLL_S, (time.monotonic() - started_s) / POLL_SHARE))
            until_s = time.monotonic() + wait_s
            while time.monotonic() < until_s:
                if requests.first is not None:
                    status, cancel = (sweep_command(command, folder.root) for command in ("status", "cancel"))
                    raise Interrupted(f"the jobs go on: {status}, or {cancel}")
                time.sleep(0.1)
    return [
        CellResult(
            number=cell.number,
            overrides=cell.prepared.overrides,
            plan=cell.prepared.plan,
            outcome=row.outcome,
            note=row.note,
            is_dropped=cell.prepared.refused,
        )
        for cell, row in zip(cells, progress.rows, strict=True)
    ]
