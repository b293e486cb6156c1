"""Runs for people: all of them in one table, or how one of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from launcher.report.console import columns, heading, indented, show
from launcher.report.describe import plural
from launcher.report.failure import failure_table, show_advice, show_log_tail
from launcher.report.outcome import shown_path
from launcher.report.plan_errors import MEASURES, PlanError, RunErrors, run_errors, summary
from launcher.report.sweep_table import STATUS_STYLE, loss_words
from launcher.runs.diagnosis.types import Diagnosis
from launcher.runs.layout import RunFolder
from launcher.runs.logs import logs_folder
from launcher.runs.outcome import Metrics
from launcher.runs.records import EvalMetrics, Event, TrainMetrics
from launcher.runs.registry import RunSummary
from launcher.runs.tail import read_events, read_metrics
from launcher.spec import to_json
from launcher.units import format_duration

SHORTER = "*"
STATUS_TAIL_LINES = 5


def show_runs(runs: Sequence[RunSummary], runs_dir: Path, console: Console, *, silence: str = "") -> None:
    """One line a run, the oldest first: how it stands, and how far its plan was off; and all plans together.

    silence: what the scheduler said instead of an answer.
    """
    if not runs:
        show(console, Text(f"No runs in {runs_dir}."))
        return
    errors = [run_errors(run.run_dir) for run in runs]
    known = [found for found in errors if found is not None]
    measures = [name for name in MEASURES if summary(known, name) is not None]
    job = ("job",) if any(run.job_id is not None for run in runs) else ()
    kinds = "lll" + "l" * len(job) + "r" + "r" * len(measures) + "w"
    table = columns(kinds, ("run", "started", "status", *job, "attempt", *measures, ""))
    for run, found in zip(runs, errors, strict=True):
        table.add_row(
            Text(run.run_id, style="bold"),
            _local_time(run.created_at_s),
            Text(run.status.value, style=STATUS_STYLE.get(run.status, "")),
            *([run.job_id or "-"] if job else []),
            str(run.attempt) if run.attempt else "-",
            *(_off_words(found, name) for name in measures),
            Text(run.reason, style="dim"),
        )
    show(console, table)
    show_silence(silence, console)
    _show_summary(known, measures, console)


def show_silence(silence: str, console: Console) -> None:
    """That the scheduler does not answer, once for all runs that it would have to tell of."""
    if silence:
        show(
            console,
            Text(f"\nThe scheduler does not answer, so what it would tell is unknown: {silence}", style="yellow"),
        )


def _off_words(found: RunErrors | None, measure: str) -> str:
    error: PlanError | None = None if found is None else getattr(found, measure)
    if found is None or error is None:
        return "-"
    return f"{error.percent:+.1f} %" + ("" if found.full_length else SHORTER)


def _show_summary(known: Sequence[RunErrors], measures: Sequence[str], console: Console) -> None:
    """What the columns mean, and the errors of all runs together."""
    if not measures:
        return
    count = plural(len(known), "run")
    show(console, heading("How far plans were off", f"the fullest rank of {count}; + means planned too high"))
    table = columns("lrrrr", ("", "runs", "median", "lowest", "highest"))
    for name in measures:
        found = summary(known, name)
        assert found is not None, "only measures with runs are shown"
        percents = (f"{value:+.1f} %" for value in (found.median, found.lowest, found.highest))
        table.add_row(name, str(found.count), *percents)
    show(console, indented(table))
    if not all(found.full_length for found in known):
        note = f"{SHORTER} the sequences measured were shorter than planned for, and needed less"
        show(console, indented(Text(note, style="dim")))


def runs_json(runs: Sequence[RunSummary]) -> str:
    """The runs with the errors of their plans, and the errors of all together, as one JSON document."""
    errors = [run_errors(run.run_dir) for run in runs]
    known = [found for found in errors if found is not None]
    listed = []
    for run, found in zip(runs, errors, strict=True):
        document: dict[str, Any] = msgspec.to_builtins(run, builtin_types=(), enc_hook=str)
        listed.append(document | {"plan_errors": None if found is None else _errors_document(found)})
    return to_json({"runs": listed, "plan_errors": {name: summary(known, name) for name in MEASURES}})


def _errors_document(found: RunErrors) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(found)
    for name in MEASURES:
        error: PlanError | None = getattr(found, name)
        if error is not None:
            document[name]["percent"] = error.percent
    return document


def _local_time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M")


def show_status(run: RunSummary, console: Console, found: Diagnosis | None = None) -> None:
    """How one run stands: status, the stage and step it got to, its newest losses; and why it failed, where it did."""
    folder = RunFolder(run.run_dir)
    table = columns("lw")
    status = Text(run.status.value, style=f"bold {STATUS_STYLE.get(run.status, '')}".strip())
    reason = run.reason if found is None else found.what
    table.add_row("status", Text.assemble(status, f": {reason}" if reason else ""))
    table.add_row("started", _local_time(run.created_at_s))
    if run.job_id is not None:
        table.add_row("job", run.job_id)
    if run.attempt:
        table.add_row("attempt", str(run.attempt))
    if run.exit_code is not None:
        table.add_row("exit code", str(run.exit_code))
    for name, words in _progress(read_events(folder.events), read_metrics(folder.metrics)):
        table.add_row(name, words)
    table.add_row("run folder", shown_path(folder.root, Path.cwd()))
    if run.attempt:
        table.add_row("logs", shown_path(logs_folder(folder, run.attempt), Path.cwd()))
    show(console, Text(run.run_id, style="bold"), indented(table))
    if found is not None:
        show(console, heading("Why it failed"), indented(failure_table(found)))
        show_log_tail(found, console, STATUS_TAIL_LINES)
        show_advice(found, console)


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
