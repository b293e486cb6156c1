"""Run a sweep's cells side by side from here: each in its seat, all heeding the same stop."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from launcher.errors import FitlaunchError, Interrupted
from launcher.execution import frozen
from launcher.host import Host
from launcher.host.nvml import CardNow, cards_now
from launcher.node.run import Say
from launcher.node.signals import StopRequests, collect_stop_requests
from launcher.planner.types import MemoryPlan
from launcher.render.environment import HostFacts, read_host_facts
from launcher.report.outcome import write_report
from launcher.report.sweep_progress import Row, SweepProgress
from launcher.report.sweep_table import CellResult
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Outcome
from launcher.runs.sweeps import Cell
from launcher.spec import ClusterKind, Fit
from launcher.sweeps.slots import Need, Room, Seat, need_of, seat_for, threads_per_cell
from launcher.targets.space import check_disk, disk_need, free_bytes
from launcher.targets.start import start_and_follow, start_attempt
from launcher.workflow import Prepared

POLL_S = 0.2

Start = Callable[[Seat, Row, StopRequests, Say], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCell:
    """A cell that is started from here. start: follows it to its end, in a thread; None where the cell is dropped."""

    cell: Cell
    plan: MemoryPlan
    need: Need
    start: Start | None


@dataclass(slots=True)
class Running:
    """A cell that was started. ended: how, or why it was not started; any other exception is a bug."""

    seat: Seat
    thread: threading.Thread | None = None
    ended: list[Outcome | BaseException] = field(default_factory=list)


def new_cell(cell: Cell, prepared: Prepared, facts: HostFacts, room: Room, num_cells: int) -> LocalCell:
    """A cell that is frozen when its seat is known: its plan names its GPUs, and how many threads it may start."""

    def start(seat: Seat, row: Row, requests: StopRequests, say: Say) -> Outcome:
        disk, free = disk_need(prepared.plan), free_bytes(prepared.runs_dir)
        warning = check_disk(disk, prepared.runs_dir, free, refuse=prepared.fit is not Fit.WARN)
        if warning:
            say(warning)
        launch = frozen(prepared, run_id=cell.run_id, host=facts_for(facts, seat, room, num_cells))
        return start_and_follow(launch, observer=row, say=say, requests=requests)

    need = need_of(prepared.plan)
    return LocalCell(cell=cell, plan=prepared.plan, need=need, start=None if prepared.refused else start)


def frozen_cell(cell: Cell, run: RunFolder, plan: MemoryPlan) -> LocalCell:
    """A cell whose run is there already and goes on: its plan names the GPUs that it had."""

    def start(_seat: Seat, row: Row, requests: StopRequests, say: Say) -> Outcome:
        return start_attempt(run, observer=row, say=say, requests=requests)

    visible = read_launch_plan(run).env.get("CUDA_VISIBLE_DEVICES", "")
    cards = tuple(name for name in visible.split(",") if name)
    return LocalCell(cell=cell, plan=plan, need=dataclasses.replace(need_of(plan), cards=cards), start=start)


class SideBySide:
    """Starts what there is room for, collects what has ended, and starts no more once the user asks for a stop.

    cards: the host's GPUs, asked whenever a cell wants one. is_cancelled: whether somebody else wants no more started.
    """

    def __init__(
        self,
        cells: Sequence[LocalCell],
        room: Room,
        progress: SweepProgress,
        *,
        cards: Callable[[], Sequence[CardNow]],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._cells = cells
        self._waiting = [index for index, cell in enumerate(cells) if cell.start is not None]
        self._room = room
        self._progress = progress
        self._cards = cards
        self._is_cancelled = is_cancelled
        self._running: dict[int, Running] = {}

    def run(self, requests: StopRequests) -> None:
        """Run all; their rows tell how they ended."""
        while self._waiting or self._running:
            if requests.first is not None or self._is_cancelled():
                self._drop_waiting()
            self._start_what_fits(requests)
            for index in [index for index, cell in self._running.items() if cell.thread and not cell.thread.is_alive()]:
                self._collect(index)
            self._progress.draw()
            time.sleep(POLL_S)

    def _start_what_fits(self, requests: StopRequests) -> None:
        for index in list(self._waiting):
            need = self._cells[index].need
            taken = [cell.seat for cell in self._running.values()]
            seat = seat_for(need, self._room, taken, () if need.gpu_bytes is None else self._cards())
            if seat is not None:
                self._waiting.remove(index)
                self._start(index, seat, requests)

    def _start(self, index: int, seat: Seat, requests: StopRequests) -> None:
        start, row = self._cells[index].start, self._progress.rows[index]
        assert start is not None, "a dropped cell does not wait"
        running = self._running[index] = Running(seat=seat)

        def work() -> None:
            try:
                running.ended.append(start(seat, row, requests, lambda text: self._progress.say(index, text)))
            except BaseException as error:  # noqa: BLE001  raised again by the thread that collects it
                running.ended.append(error)

        self._progress.started(index, f" on GPU {','.join(seat.cards)}" if seat.cards else "")
        # A thread, not a process: the ranks watch this launcher, and a stop reaches all of them at once.
        running.thread = threading.Thread(target=work, name=f"cell {index}", daemon=True)
        running.thread.start()

    def _collect(self, index: int) -> None:
        ended = self._running.pop(index).ended[0]
        if isinstance(ended, Outcome):
            write_report(ended)
            self._progress.ended(index, ended)
        elif isinstance(ended, FitlaunchError):
            self._progress.ended(index, None, ended)
        else:
            raise ended

    def _drop_waiting(self) -> None:
        for index in self._waiting:
            self._progress.left_out(index, "not started: stopped", Interrupted("stopped before it was started"))
        self._waiting.clear()


def run_side_by_side(
    cells: Sequence[LocalCell], room: Room, console: Console, *, is_cancelled: Callable[[], bool]
) -> list[CellResult]:
    """Run the cells that are not dropped, as many at a time as there is room for. A cell that fails stops no other.

    A user's stop lets those that run save and end, and starts no more.
    """
    progress = SweepProgress(console, [cell.cell for cell in cells])
    with collect_stop_requests() as requests, progress:
        for index, cell in enumerate(cells):
            if cell.start is None:
                progress.left_out(index, "does not fit")
        side_by_side = SideBySide(cells, room, progress, cards=lambda: cards_now(os.environ), is_cancelled=is_cancelled)
        side_by_side.run(requests)
    return [_result(cell, row) for cell, row in zip(cells, progress.rows, strict=True)]


def room_of(host: Host, kind: ClusterKind, most: int | None) -> Room:
    """What there is for a sweep. most: cells at a time as the user wants it; several hosts are one seat."""
    most = 1 if kind is ClusterKind.HOSTS else most
    return Room(num_cores=host.num_cores, ram_bytes=host.ram_available_bytes, most=most)


def this_host() -> HostFacts:
    """The host as a single job sees it."""
    return read_host_facts(os.environ)


def facts_for(facts: HostFacts, seat: Seat, room: Room, num_cells: int) -> HostFacts:
    """The host as one cell is to see it: its own GPUs, and its share of the cores."""
    num_cpus = min(facts.num_cpus, threads_per_cell(seat.need, room, num_cells))
    return dataclasses.replace(facts, num_cpus=num_cpus, visible_devices=seat.cards or facts.visible_devices)


def run_folder(runs_dir: Path, cell: Cell) -> RunFolder:
    """Where a cell's run lies."""
    return RunFolder(runs_dir / cell.run_id)


def _result(cell: LocalCell, row: Row) -> CellResult:
    return CellResult(
        number=cell.cell.number,
        overrides=cell.cell.overrides,
        plan=cell.plan,
        outcome=row.outcome,
        note=row.note,
        error=row.error,
        is_dropped=cell.start is None,
    )
