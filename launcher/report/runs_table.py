"""Runs for people: all of them in one table, or how one of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.report.console import columns, indented, show
from launcher.report.outcome import shown_path
from launcher.report.sweep_table import STATUS_STYLE, loss_words
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Metrics
from launcher.runs.records import EvalMetrics, Event, TrainMetrics
from launcher.runs.registry import RunSummary
from launcher.runs.tail import read_events, read_metrics
from launcher.units import format_duration


def show_runs(runs: Sequence[RunSummary], runs_dir: Path, console: Console) -> None:
    """One line a run, the oldest first."""
    if not runs:
        show(console, Text(f"No runs in {runs_dir}."))
        return
    table = columns("lllrw", ("run", "started", "status", "attempt", ""))
    for run in runs:
        table.add_row(
            Text(run.run_id, style="bold"),
            _local_time(run.created_at_s),
            Text(run.status.value, style=STATUS_STYLE.get(run.status, "")),
            str(run.attempt) if run.attempt else "-",
            Text(run.reason, style="dim"),
        )
    show(console, table)


def _local_time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M")


def show_status(run: RunSummary, console: Console) -> None:
    """How one run stands: status, the stage and step it got to, its newest losses."""
    folder = RunFolder(run.run_dir)
    table = columns("lw")
    status = Text(run.status.value, style=f"bold {STATUS_STYLE.get(run.status, '')}".strip())
    table.add_row("status", Text.assemble(status, f": {run.reason}" if run.reason else ""))
    table.add_row("started", _local_time(run.created_at_s))
    if run.attempt:
        table.add_row("attempt", str(run.attempt))
    if run.exit_code is not None:
        table.add_row("exit code", str(run.exit_code))
    for name, words in _progress(read_events(folder.events), read_metrics(folder.metrics)):
        table.add_row(name, words)
    table.add_row("run folder", shown_path(folder.root, Path.cwd()))
    if run.attempt:
        table.add_row("logs", shown_path(folder.logs(run.attempt), Path.cwd()))
    show(console, Text(run.run_id, style="bold"), indented(table))


def _progress(events: Sequence[Event], metrics: Sequence[Metrics]) -> list[tuple[str, str]]:
    rows = []
    if events:
        detail = f": {events[-1].detail}" if events[-1].detail else ""
        rows.append(("last stage", f"{events[-1].stage}{detail}"))
    steps = [item for item in metrics if isinstance(item, TrainMetrics)]
    if steps:
        last = steps[-1]
        rows.append(("step", f"{last.step:,} of {last.num_steps:,}, loss {loss_words(last.loss)}"))
        rows.append(("trained for", format_duration(last.time_s - steps[0].time_s)))
    evaluations = [item for item in metrics if isinstance(item, EvalMetrics)]
    if evaluations:
        newest = evaluations[-1]
        rows.append(("held-out loss", f"{loss_words(newest.loss)} at step {newest.step:,}"))
    return rows
