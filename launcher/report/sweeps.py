"""A sweep that goes on without us: what was sent, and how its cells stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from launcher.report.console import columns, heading, indented, show
from launcher.report.describe import brief, plural
from launcher.report.outcome import shown_path
from launcher.report.sweep_table import STATUS_STYLE, differing, loss_words, short_keys
from launcher.runs.called import sweep_command
from launcher.runs.records import Status
from launcher.runs.registry import RunSummary
from launcher.runs.sweeps import ArraySubmission, Cell, Sweep, SweepFolder
from launcher.spec import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A cell as it stands now. summary: of its run, None where it was dropped or never started. progress: '12/100'."""

    cell: Cell
    summary: RunSummary | None
    loss_before: float | None = None
    loss_after: float | None = None
    progress: str = ""

    @property
    def status(self) -> Status | None:
        """Its run's status; None where it has no run."""
        return None if self.summary is None else self.summary.status

    @property
    def status_words(self) -> str:
        """What is said of a cell's status."""
        if self.summary is None:
            return "does not fit" if self.cell.dropped else "not started"
        return "not queued" if self.summary.status is Status.RENDERED else self.summary.status.value


def show_sent(folder: SweepFolder, sent: Sequence[ArraySubmission], console: Console) -> None:
    """What was submitted; the jobs go on without us."""
    show(console, heading(f"Queued {plural(sum(len(array.cells) for array in sent), 'cell')}", folder.root.name))
    table = columns("llw", ("job", "elements", "cells"))
    for array in sent:
        elements = f"{array.job_id}_0" if len(array.cells) == 1 else f"{array.job_id}_0 to _{len(array.cells) - 1}"
        table.add_row(Text(str(array.job_id), style="bold"), elements, number_ranges(array.cells))
    show(console, indented(table))
    rows = columns("lw")
    rows.add_row(Text("sweep folder", style="bold"), shown_path(folder.root, Path.cwd()))
    rows.add_row(Text("follow it", style="bold"), sweep_command("status", folder.root))
    rows.add_row(Text("stop it", style="bold"), sweep_command("cancel", folder.root))
    show(console, indented(rows))


def show_search(text: str, path: Path, console: Console) -> None:
    """What a sweeper that searches says at its end."""
    show(console, heading("What the search found", shown_path(path, Path.cwd())), indented(Text(text.rstrip())))


def show_rendered(folder: SweepFolder, num_arrays: int, console: Console) -> None:
    """The commands that would submit what was written."""
    show(console, heading("Rendered", folder.root.name))
    for number in range(1, num_arrays + 1):
        show(console, indented(Text(f"sbatch {shown_path(folder.script(number), Path.cwd())} 1")))


def number_ranges(numbers: Sequence[int]) -> str:
    """'0-3, 7, 9-10' from ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(str(number) for number in run) for run in runs)


def show_standings(sweep: Sweep, standings: Sequence[Standing], console: Console) -> None:
    """One line a cell, and how many there are of each status."""
    counted = Counter(each.status_words for each in standings)
    words = ", ".join(f"{count} {status}" for status, count in counted.items())
    since = f"{datetime.fromtimestamp(sweep.created_at_s):%Y-%m-%d %H:%M}"
    show(console, heading(sweep.sweep_id, f"since {since} on {sweep.cluster}: {words}"))
    keys, values = differing([cell.overrides for cell in sweep.cells])
    titles = ("", *short_keys(keys), "status", "step", "eval loss", "job", "run")
    table = columns("r" + "w" * len(keys) + "wrrll", titles)
    for each, cell in zip(standings, values, strict=True):
        loss = "" if each.loss_after is None else f"{loss_words(each.loss_before)} -> {loss_words(each.loss_after)}"
        style = "" if each.status is None else STATUS_STYLE.get(each.status, "")
        job_id = "" if each.summary is None else each.summary.job_id or ""
        run_id = "" if each.summary is None else each.summary.run_id
        table.add_row(
            Text(str(each.cell.number), style="dim"),
            *cell,
            Text(each.status_words, style=style),
            each.progress,
            loss,
            job_id,
            run_id,
        )
    show(console, indented(table))
    reasons: dict[str, list[int]] = {}
    for each in standings:
        if each.summary is not None and each.summary.reason and each.status in (Status.FAILED, Status.UNKNOWN):
            reasons.setdefault(brief(each.summary.reason), []).append(each.cell.number)
    if reasons:
        why = columns("rw")
        for reason, numbers in reasons.items():
            why.add_row(Text(number_ranges(numbers), style="dim"), reason)
        show(console, heading("Why"), indented(why))


def standings_json(sweep: Sweep, standings: Sequence[Standing]) -> str:
    """The same as one JSON document."""
    cells: list[dict[str, Any]] = [
        {
            "number": each.cell.number,
            "overrides": list(each.cell.overrides),
            "run_id": each.cell.run_id,
            "status": each.status_words,
            "reason": "" if each.summary is None else each.summary.reason,
            "job_id": None if each.summary is None else each.summary.job_id,
            "eval_loss_before": each.loss_before,
            "eval_loss_after": each.loss_after,
        }
        for each in standings
    ]
    document = {"sweep_id": sweep.sweep_id, "cluster": sweep.cluster.value, "created_at_s": sweep.created_at_s}
    return to_json(msgspec.to_builtins(document) | {"cells": cells})
