"""A sweep on a Slurm cluster: everything is checked, then written, then submitted as one array for each shape."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from launcher.execution import doubts, frozen, host_facts, nothing_is_queued
from launcher.report.queued import show_asked
from launcher.report.sweeps import show_sent
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.sweeps import ArraySubmission, SweepFolder, read_arrays
from launcher.scheduler.details import max_array_size
from launcher.spec import Fit
from launcher.sweeps.arrays import Element, SweepArray, array_script, plan_arrays
from launcher.sweeps.cells import PlannedCell
from launcher.sweeps.submit import send_array, write_array
from launcher.targets.folder import write_run_folder
from launcher.targets.site import check_limits, most_cells, try_script
from launcher.targets.space import DiskNeed, check_disk, disk_need, free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """An array that the cluster would take, under its number, and its script."""

    number: int
    array: SweepArray
    script: str


def check_arrays(folder: SweepFolder, elements: Sequence[Element]) -> tuple[Ready, ...]:
    """The arrays of these cells. Nothing is written or queued.

    Raises InputError or SubmitError where the cluster would not take one of them. A single array is judged by Slurm
    when it is submitted; of several, none is submitted before all were judged.
    """
    slurm = elements[0].plan.spec.cluster.slurm
    assert slurm is not None, "only jobs for Slurm are checked against it"
    arrays = plan_arrays(elements, most_cells(slurm, max_array_size()))
    check_limits([array.spec for array in arrays])
    first = 1 + max((array.number for array in _arrays(folder)), default=0)
    ready = tuple(
        Ready(number=number, array=array, script=array_script(folder, number, array, sys.executable))
        for number, array in enumerate(arrays, start=first)
    )
    if len(ready) > 1:
        for each in ready:
            try_script(each.array.spec, each.script, os.environ)
    return ready


def _arrays(folder: SweepFolder) -> tuple[ArraySubmission, ...]:
    return read_arrays(folder) if folder.root.is_dir() else ()


def send_all(folder: SweepFolder, ready: Sequence[Ready]) -> list[ArraySubmission]:
    """Write and submit the arrays, one after the other; the caller holds the sweep's lock."""
    sent = []
    for each in ready:
        write_array(folder, each.number, each.array, each.script)
    for each in ready:
        sent.append(send_array(folder, each.number, each.array, os.environ))
    return sent


def elements_of(cells: Sequence[PlannedCell]) -> tuple[Element, ...]:
    """The cells that are to be submitted."""
    return tuple(
        Element(number=cell.number, run=RunFolder(cell.prepared.runs_dir / cell.run_id), plan=cell.prepared.plan)
        for cell in cells
        if not cell.prepared.refused
    )


def submit_cells(
    folder: SweepFolder, cells: Sequence[PlannedCell], register: Callable[[], None], console: Console
) -> list[ArraySubmission]:
    """Check, write the run folders, submit, and say how the sweep is followed.

    register: writes the sweep's record; called when the cluster has been asked, before anything else is written.
    """
    ready = _prepare(folder, cells, console)
    register()
    with hold_lock(folder.lock, what=f"sweep {folder.root.name}"):
        write_cells(cells)
        sent = send_all(folder, ready)
    show_sent(folder, sent, console)
    for each in ready:
        show_asked(each.array.spec, each.array.asked, console)
    return sent


def render_cells(
    folder: SweepFolder, cells: Sequence[PlannedCell], register: Callable[[], None], console: Console
) -> None:
    """mode=render: write everything, submit nothing, and say which commands would."""
    from launcher.report.sweeps import show_rendered

    arrays = plan_arrays(elements_of(cells), None)
    register()
    write_cells(cells)
    for number, array in enumerate(arrays, start=1):
        write_array(folder, number, array, array_script(folder, number, array, sys.executable))
    show_rendered(folder, len(arrays), console)
    for array in arrays:
        show_asked(array.spec, array.asked, console)


def _prepare(folder: SweepFolder, cells: Sequence[PlannedCell], console: Console) -> tuple[Ready, ...]:
    first = cells[0].prepared
    wanted = [cell.prepared for cell in cells if not cell.prepared.refused]
    need = together([disk_need(prepared.plan) for prepared in wanted])
    refuse = first.fit is not Fit.WARN
    disk = check_disk(need, first.runs_dir, free_bytes(first.runs_dir), refuse=refuse)
    doubted = [text for prepared in wanted for text in doubts(prepared.plan.spec, first.runs_dir)]
    for text in dict.fromkeys((disk, *doubted)):
        if text:
            console.print(text, style="yellow", soft_wrap=True)
    with nothing_is_queued():
        return check_arrays(folder, elements_of(cells))


def together(needs: Sequence[DiskNeed]) -> DiskNeed:
    """What all cells write: as if one run wrote it, so that it is told as that of a single run is."""
    return DiskNeed(
        checkpoint_bytes=sum(need.checkpoint_bytes * need.num_checkpoints for need in needs)
        or max(need.checkpoint_bytes for need in needs),
        result_bytes=sum(need.result_bytes for need in needs),
        num_checkpoints=int(any(need.num_checkpoints for need in needs)),
        num_at_most=1,
    )


def write_cells(cells: Sequence[PlannedCell]) -> None:
    """The run folders of the cells that are not dropped."""
    for cell in cells:
        if not cell.prepared.refused:
            host = host_facts(cell.prepared.plan.spec)
            write_run_folder(frozen(cell.prepared, run_id=cell.run_id, host=host), now_s=time.time())
