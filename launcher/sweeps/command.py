"""What `launch.py -m` does with its planned cells: one table of all plans, then all of them or nothing."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from launcher.errors import DoesNotFit, FitlaunchError, InputError, Interrupted, JobFailed, Problem
from launcher.execution import frozen
from launcher.host import detect_host
from launcher.report.plan_json import plans_json
from launcher.report.sweep_table import CellResult, show_results, show_sweep
from launcher.report.sweeps import show_search
from launcher.runs.lock import hold_lock
from launcher.runs.records import Status, write_atomically, write_record
from launcher.runs.sweeps import Sweep, SweepFolder, new_sweep_id, sweep_folder
from launcher.spec import ClusterKind, Mode
from launcher.sweeps.cells import PlannedCell, number_cells, unwaited
from launcher.targets.folder import write_run_folder
from launcher.workflow import Prepared, too_large_words

Value = float | FitlaunchError | None
"""A cell's held-out loss after training; why it has none; None where nobody waited for it."""


def merge_problems(errors: Sequence[InputError]) -> InputError:
    """The problems of all cells, each once."""
    problems = {str(problem): problem for error in errors for problem in error.problems}
    return InputError(problems.values())


class SweepCommand:
    """One command's sweep. A sweeper that searches hands it over in batches: all of them are one sweep."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._token = secrets.token_hex(2)
        self._started_at = datetime.now()
        self._cells: tuple[PlannedCell, ...] = ()
        self.folder: SweepFolder | None = None

    def carry_out(
        self, prepared: Sequence[Prepared], *, wants_values: bool
    ) -> tuple[list[Value], FitlaunchError | None]:
        """Show all plans; then render, run or submit the cells that fit.

        Returns each cell's value, and the error whose exit code tells what happened. wants_values: the sweeper
        searches, and goes by the losses. Raises FitlaunchError where nothing was started.
        """
        problems = tuple(_problems(prepared, wants_values=wants_values))
        if problems:
            raise InputError(problems)
        self._show_plans(prepared)
        first = prepared[0]
        refusal = _refusal(prepared)
        if first.mode is Mode.PLAN:
            return [None] * len(prepared), refusal
        if refusal is not None:
            raise refusal
        cells = number_cells(prepared, first=len(self._cells), now=self._started_at, token=self._token)
        self.folder = sweep_folder(first.runs_dir, new_sweep_id(self._started_at, self._token))
        if first.plan.spec.cluster.kind is ClusterKind.SLURM:
            results = self._on_slurm(self.folder, cells)
        else:
            results = self._from_here(self.folder, cells)
        return [value_of(result) for result in results], error_of(results)

    def _on_slurm(self, folder: SweepFolder, cells: Sequence[PlannedCell]) -> list[CellResult]:
        from launcher.sweeps import slurm  # what only some sweeps need

        def register() -> None:
            self._register(folder, cells)

        if cells[0].prepared.mode is Mode.RENDER:
            slurm.render_cells(folder, cells, register, self._console)
            return unwaited(cells)
        slurm.submit_cells(folder, cells, register, self._console)
        if not cells[0].prepared.sweep.wait:
            return unwaited(cells)
        from launcher.operate.queue import SlurmQueue
        from launcher.sweeps.follow import follow_cells

        results = follow_cells(folder, cells, SlurmQueue(max_age_s=0.5), self._console)
        show_results(results, self._console)
        return results

    def _from_here(self, folder: SweepFolder, cells: Sequence[PlannedCell]) -> list[CellResult]:
        from launcher.sweeps.local import new_cell, room_of, run_side_by_side, this_host

        self._register(folder, cells)
        first, facts = cells[0].prepared, this_host()
        if first.mode is Mode.RENDER:
            return _render_all(cells)
        room = room_of(detect_host(), first.plan.spec.cluster.kind, first.sweep.parallel)
        here = [new_cell(cell.record, cell.prepared, facts, room, len(cells)) for cell in cells]
        with hold_lock(folder.lock, what=f"sweep {folder.root.name}"):
            results = run_side_by_side(here, room, self._console, is_cancelled=folder.cancelled.exists)
        show_results(results, self._console)
        return results

    def keep_search(self, results: Path) -> None:
        """Show what a sweeper that searches found, and keep it with the sweep. results: its own file, if it has any."""
        if self.folder is None or not results.is_file():
            return
        text = results.read_text()
        write_atomically(self.folder.search, text)
        show_search(text, self.folder.search, self._console)

    def _show_plans(self, prepared: Sequence[Prepared]) -> None:
        plans = [cell.plan for cell in prepared]
        if prepared[0].as_json:
            sys.stdout.write(plans_json(plans) + "\n")
        else:
            overrides = [cell.overrides for cell in prepared]
            show_sweep(plans, self._console, overrides=overrides, first=len(self._cells))

    def _register(self, folder: SweepFolder, cells: Sequence[PlannedCell]) -> None:
        """Write down which runs are the sweep's, before anything of theirs is written."""
        self._cells += tuple(cells)
        sweep = Sweep(
            sweep_id=folder.root.name,
            created_at_s=self._started_at.timestamp(),
            cluster=cells[0].prepared.plan.spec.cluster.kind,
            cells=tuple(cell.record for cell in self._cells),
        )
        write_record(folder.record, sweep)


def _problems(prepared: Sequence[Prepared], *, wants_values: bool) -> Iterator[Problem]:
    """What the cells of one sweep must share, and what their cluster cannot do."""
    shared = {
        "mode": {str(cell.mode) for cell in prepared},
        "runs_dir": {str(cell.runs_dir) for cell in prepared},
        "plan.format": {"json" if cell.as_json else "table" for cell in prepared},
        "sweep": {str(cell.sweep) for cell in prepared},
        "cluster": {str(cell.plan.spec.cluster.kind) for cell in prepared},
    }
    for field, values in shared.items():
        if len(values) > 1:
            rule = f"has {len(values)} values, and a sweep has one"
            yield Problem(field=field, value=None, rule=rule, way_out="start a sweep for each")
    first = prepared[0]
    kind = first.plan.spec.cluster.kind
    if first.sweep.parallel is not None and kind is not ClusterKind.LOCAL:
        way_out = "use cluster.max_parallel" if kind is ClusterKind.SLURM else "its cells run one after the other"
        rule = f"has no effect with cluster={kind}"
        yield Problem(field="sweep.parallel", value=first.sweep.parallel, rule=rule, way_out=way_out)
    if kind is not ClusterKind.SLURM:
        return
    if wants_values and first.mode is Mode.RUN and not first.sweep.wait:
        rule = "goes by the losses of its cells, which are not there when they are submitted"
        way_out = "use sweep.wait=true, or hydra/sweeper=basic"
        yield Problem(field="hydra/sweeper", value=None, rule=rule, way_out=way_out)


def _refusal(prepared: Sequence[Prepared]) -> DoesNotFit | None:
    """Why nothing is started, if cells that cannot fit are not to be left out, or if none is left."""
    refused = [cell for cell in prepared if cell.refused]
    if not refused or (prepared[0].sweep.drop and len(refused) < len(prepared)):
        return None
    if len(refused) == len(prepared) == 1:
        return DoesNotFit(too_large_words(refused[0].plan))
    way_out = "" if len(refused) == len(prepared) else " (sweep.drop=true leaves them out)"
    return DoesNotFit(f"{len(refused)} of {len(prepared)} jobs do not fit; nothing was started{way_out}")


def _render_all(cells: Sequence[PlannedCell]) -> list[CellResult]:
    for cell in cells:
        if not cell.prepared.refused:
            write_run_folder(frozen(cell.prepared, run_id=cell.run_id), now_s=time.time())
    return unwaited(cells)


def value_of(result: CellResult) -> Value:
    """What the sweeper is told of a cell."""
    outcome = result.outcome
    if outcome is None:
        return DoesNotFit("the cell does not fit, and was left out") if result.is_dropped else result.error
    if outcome.finished is None:
        return JobFailed(outcome.first_cause)
    return outcome.finished.eval_loss_after


def error_of(results: Sequence[CellResult]) -> FitlaunchError | None:
    """The error whose exit code tells what happened in the sweep: a stop, then failures."""
    for result in results:
        if result.outcome is not None and result.outcome.exit_code == Interrupted.exit_code:
            return Interrupted(result.outcome.first_cause)
    failed = sum(
        result.error is not None or (result.outcome is not None and result.outcome.status is not Status.FINISHED)
        for result in results
    )
    return JobFailed(f"{failed} of {len(results)} jobs failed") if failed else None
