"""Start the failed cells of a sweep again, and those that were never started; the others stay as they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from launcher.assemble import assemble
from launcher.errors import InputError, Problem
from launcher.execution import frozen
from launcher.host import Host, detect_host
from launcher.operate.queue import SlurmQueue
from launcher.paths import conf_dir
from launcher.planner.types import MemoryPlan
from launcher.report.sweep_table import CellResult, show_results
from launcher.report.sweeps import Standing, show_sent
from launcher.runs.lock import hold_lock
from launcher.runs.records import Status, read_record
from launcher.runs.registry import read_submission
from launcher.runs.sweeps import Cell, Sweep, SweepFolder, read_sweep
from launcher.scheduler.client import SchedulerSilent
from launcher.spec import ClusterKind
from launcher.sweeps.arrays import Element
from launcher.sweeps.local import LocalCell, frozen_cell, new_cell, room_of, run_side_by_side, this_host
from launcher.sweeps.slots import Room
from launcher.sweeps.slurm import check_arrays, send_all
from launcher.sweeps.standing import standings
from launcher.sweeps.submit import adopt
from launcher.targets.folder import write_run_folder
from launcher.targets.slurm import next_submission
from launcher.workflow import Prepared, prepare

FAILED = (Status.FAILED, Status.RENDERED)
ASIDE = (Status.STOPPED, Status.CANCELLED)


def retry(folder: SweepFolder, console: Console, *, stopped_too: bool) -> list[CellResult]:
    """Submit, or run here, the cells that failed or were never started. Returns what came of those that ran here.

    stopped_too: also those that somebody stopped or cancelled. Raises InputError where there is none, SubmitError
    where another launcher sees to the sweep or Slurm refuses, SchedulerSilent where nobody knows what is queued.
    """
    sweep = read_sweep(folder)
    with hold_lock(folder.lock, what=f"sweep {sweep.sweep_id}"):
        if sweep.cluster is ClusterKind.SLURM:
            _retry_on_slurm(folder, sweep, console, stopped_too=stopped_too)
            return []
        again = _some(sweep, to_retry(standings(folder, sweep, None), stopped_too=stopped_too))
        folder.cancelled.unlink(missing_ok=True)
        results = _run_here(folder, sweep, [each.cell for each in again], console)
    show_results(results, console)
    return results


def to_retry(cells: Sequence[Standing], *, stopped_too: bool) -> list[Standing]:
    """The cells that are started again. What does not fit never is, and what is unknown may be running."""
    wanted = (*FAILED, *ASIDE) if stopped_too else FAILED
    return [each for each in cells if not each.cell.dropped and (each.summary is None or each.status in wanted)]


def _some(sweep: Sweep, again: Sequence[Standing]) -> Sequence[Standing]:
    if not again:
        rule, way_out = "has no cell that failed", "--stopped takes those that were stopped or cancelled as well"
        raise InputError([Problem(field="sweep", value=sweep.sweep_id, rule=rule, way_out=way_out)])
    return again


def _retry_on_slurm(folder: SweepFolder, sweep: Sweep, console: Console, *, stopped_too: bool) -> None:
    adopt(folder, sweep)
    queue = SlurmQueue()
    found = standings(folder, sweep, queue)
    if queue.silence:
        raise SchedulerSilent(f"{queue.silence}: what is queued is not known, and nothing was sent")
    chosen = {each.cell.number for each in to_retry(found, stopped_too=stopped_too)}
    again = [each for each in found if each.cell.number in chosen or _was_never_sent(folder, each)]
    ready = check_arrays(folder, [_element(folder, each.cell) for each in _some(sweep, again)])
    folder.cancelled.unlink(missing_ok=True)
    show_sent(folder, send_all(folder, ready), console)


def _was_never_sent(folder: SweepFolder, standing: Standing) -> bool:
    """Of an array that was written down, and that Slurm, which has just been asked for it, does not know."""
    submission = read_submission(folder.run(standing.cell)) if standing.status is Status.UNKNOWN else None
    return submission is not None and submission.job_id is None


def _element(folder: SweepFolder, cell: Cell) -> Element:
    """A cell as it was frozen; one whose launcher was killed before that is frozen now."""
    run = folder.run(cell)
    plan = read_record(run.memory_plan, MemoryPlan)
    if plan is None:
        prepared = _prepare_anew(cell, detect_host())
        write_run_folder(frozen(prepared, run_id=cell.run_id), now_s=time.time())
        plan = prepared.plan
    number = next_submission(run, read_submission(run))
    return Element(number=cell.number, run=run, plan=plan, submission=number)


def _prepare_anew(cell: Cell, host: Host) -> Prepared:
    """What the cell's own words mean now."""
    return prepare(cell.overrides, lambda more: assemble([*cell.overrides, *more], conf_dir()), host)


def _run_here(folder: SweepFolder, sweep: Sweep, cells: Sequence[Cell], console: Console) -> list[CellResult]:
    host = detect_host()
    room = room_of(host, sweep.cluster, None)
    here = [_local_cell(folder, cell, host, room, len(cells)) for cell in cells]
    return run_side_by_side(here, room, console, is_cancelled=folder.cancelled.exists)


def _local_cell(folder: SweepFolder, cell: Cell, host: Host, room: Room, num_cells: int) -> LocalCell:
    """A cell with a run goes on as it was frozen; one that never had any is planned now, from its own words."""
    run = folder.run(cell)
    plan = read_record(run.memory_plan, MemoryPlan)
    if plan is not None:
        return frozen_cell(cell, run, plan)
    return new_cell(cell, _prepare_anew(cell, host), this_host(), room, num_cells)
