"""A sweep on this host as it goes on: one table, redrawn on a terminal; in a pipe a line when a cell starts or ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from launcher.errors import FitlaunchError
from launcher.report.bar import share_cells
from launcher.report.console import columns, draws_blocks, heading, indented, show
from launcher.report.describe import brief
from launcher.report.progress import remaining
from launcher.report.redrawn import Redrawn
from launcher.report.sweep_table import STATUS_STYLE, differing, loss_words, short_keys
from launcher.runs.outcome import Metrics, Outcome
from launcher.runs.records import EvalMetrics, Event, Status, TrainMetrics
from launcher.runs.sweeps import Cell
from launcher.units import format_duration

BAR_WIDTH = 12
# Lines of a terminal that the table leaves: its title, a blank line, the words of what is not shown, the prompt.
OTHER_LINES = 5


@dataclass(slots=True)
class Row:
    """A cell while it runs. An Observer (launcher.runs.outcome), fed by the thread that follows it."""

    number: int
    values: tuple[str, ...]
    run_id: str
    started_at_s: float | None = None
    ended_at_s: float | None = None
    note: str = ""
    error: FitlaunchError | None = None
    outcome: Outcome | None = None
    stage: str = ""
    first: TrainMetrics | None = None
    last: TrainMetrics | None = None
    evaluations: list[EvalMetrics] = field(default_factory=list)

    def update(self, *, events: Sequence[Event], metrics: Sequence[Metrics]) -> None:
        """Take in what is new; drawn by whoever holds the table."""
        for event in events:
            self.stage = event.stage
        for item in metrics:
            if isinstance(item, TrainMetrics):
                self.first = self.first or item
                self.last = item
            else:
                self.evaluations.append(item)

    @property
    def is_running(self) -> bool:
        return self.started_at_s is not None and self.ended_at_s is None

    @property
    def is_waiting(self) -> bool:
        return self.started_at_s is None and not self.note


class SweepProgress(Redrawn):
    """Rows by the numbers of their cells, and what is drawn of them."""

    def __init__(
        self,
        console: Console,
        cells: Sequence[Cell],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(console)
        self._clock = clock
        keys, values = differing([cell.overrides for cell in cells])
        self._keys = short_keys(keys)
        self.rows = [
            Row(number=cell.number, values=shown, run_id=cell.run_id) for cell, shown in zip(cells, values, strict=True)
        ]

    def started(self, index: int, where: str) -> None:
        """A cell begins. where: the GPUs it was given, or nothing."""
        self.rows[index].started_at_s = self._clock()
        self._tell(index, f"started{where}, {self.rows[index].run_id}")

    def left_out(self, index: int, note: str, error: FitlaunchError | None = None) -> None:
        """A cell is not started, and why; error: where that is not as the user wants it."""
        self.rows[index].note, self.rows[index].error = note, error
        self._tell(index, note)

    def ended(self, index: int, outcome: Outcome | None, error: FitlaunchError | None = None) -> None:
        """A cell has ended, or could not be started."""
        row = self.rows[index]
        row.ended_at_s, row.outcome, row.error = self._clock(), outcome, error
        if error is not None:
            row.note = "not started"
            self._tell(index, f"not started: {brief(str(error))}")
            return
        self._tell(index, f"{_ending(row).plain} after {format_duration(self._elapsed(row))}{_loss(row)}")

    def say(self, index: int, text: str) -> None:
        """What the launcher of a cell has to say."""
        self._tell(index, text)

    def draw(self) -> None:
        """Draw the table anew, where one can be. A console that has gone away ends the drawing, never the sweep."""
        if self._live is None:
            return
        try:
            self._live.update(self._picture(), refresh=True)
        except OSError:
            self._live = None

    def _tell(self, index: int, text: str) -> None:
        with contextlib.suppress(OSError):
            show(self._console, Text.assemble((f"{self.rows[index].number:>3}  ", "dim"), text))

    def _picture(self) -> Group:
        running = [index for index, row in enumerate(self.rows) if row.is_running]
        waiting = sum(row.is_waiting for row in self.rows)
        table = columns(
            "r" + "w" * len(self._keys) + "wrrr", ("", *self._keys, "progress", "loss", "eval loss", "time")
        )
        room = max(1, self._console.height - OTHER_LINES)
        shown = range(len(self.rows)) if len(self.rows) <= room else running[:room]
        for index in shown:
            self._add(table, index)
        ended = len(self.rows) - len(running) - waiting
        return Group(heading("Sweep", f"{len(running)} running, {waiting} waiting, {ended} ended"), indented(table))

    def _add(self, table: Table, index: int) -> None:
        row = self.rows[index]
        loss = "" if row.last is None else f"{row.last.loss:.4f}"
        time_words = "" if row.started_at_s is None else format_duration(self._elapsed(row))
        evaluation = f"{row.evaluations[-1].loss:.4f}" if row.evaluations else ""
        table.add_row(Text(str(row.number), style="dim"), *row.values, self._state(row), loss, evaluation, time_words)

    def _state(self, row: Row) -> Text:
        if row.outcome is not None or row.note:
            return _ending(row)
        if row.started_at_s is None:
            return Text("waiting", style="dim")
        if row.last is None:
            return Text(row.stage or "starting")
        assert row.first is not None
        done = share_cells(row.last.step, row.last.num_steps, BAR_WIDTH)
        full, empty = ("━", "─") if draws_blocks(self._console) else ("#", ".")
        left_s = remaining(row.first, row.last)
        left = f", {format_duration(left_s)} left" if left_s else ""
        steps = f" {row.last.step}/{row.last.num_steps}{left}"
        return Text.assemble((full * done, "green"), (empty * (BAR_WIDTH - done), "dim"), steps)

    def _elapsed(self, row: Row) -> float:
        if row.started_at_s is None:
            return 0.0
        return (row.ended_at_s or self._clock()) - row.started_at_s


def _ending(row: Row) -> Text:
    if row.outcome is None:
        return Text(row.note, style="yellow")
    return Text(row.outcome.status.value, style=STATUS_STYLE.get(row.outcome.status, ""))


def _loss(row: Row) -> str:
    """', eval loss 2.1 -> 1.9' or ': RuntimeError on rank 1'."""
    if row.outcome is None:
        return ""
    done = row.outcome.finished
    if done is None:
        return f": {brief(row.outcome.first_cause)}" if row.outcome.status is Status.FAILED else ""
    return f", eval loss {loss_words(done.eval_loss_before)} -> {loss_words(done.eval_loss_after)}"
