"""Why a run failed, on one screen: who failed first, of what, how that is known, and what to do."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.report.console import columns, heading, indented, show
from launcher.report.describe import plural
from launcher.runs.diagnosis.types import Diagnosis, Kind, MemoryUse
from launcher.units import format_bytes

# The end of a log that usually holds the cause, and leaves room for the rest of the screen.
TAIL_LINES = 12
# With more victims than this they are only counted.
MAX_VICTIMS = 16


def show_failure(found: Diagnosis, console: Console, *, sentence: str = "") -> None:
    """The sentence (the diagnosis' own where none is given), what is known, the end of the log, and what to do."""
    show(console, Text(sentence or found.what, style="red"))
    table = failure_table(found)
    if table.row_count:
        show(console, indented(table))
    show_log_tail(found, console, TAIL_LINES)
    show_advice(found, console)


def show_log_tail(found: Diagnosis, console: Console, count: int) -> None:
    """The last lines of the log that tells most, and whose it is."""
    if found.log_tail:
        lines = [indented(Text(line)) for line in found.log_tail[-count:]]
        show(console, heading("End of the log", _whose_log(found)), *lines)


def show_advice(found: Diagnosis, console: Console) -> None:
    """What to do, where anything is known to help."""
    if found.advice:
        show(console, heading("What to do"), *(indented(Text(line)) for line in found.advice))


def failure_table(found: Diagnosis) -> Table:
    """What is known beside the sentence."""
    table = columns("lw")
    for name, words in failure_rows(found):
        table.add_row(name, words)
    return table


def failure_rows(found: Diagnosis) -> list[tuple[str, str]]:
    """What is known beside the sentence; nothing that the sentence says already."""
    rows = []
    if found.kind is not Kind.UNKNOWN:
        rows.append(("kind", found.kind.value))
    if found.host:
        node = "" if found.node is None else f" (node {found.node})"
        rows.append(("host", f"{found.host}{node}"))
    if found.time_s is not None:
        rows.append(("at", datetime.fromtimestamp(found.time_s).strftime("%Y-%m-%d %H:%M:%S")))
    if found.memory is not None:
        rows += memory_use_rows(found.memory, found.phase)
    rows += [("known from" if number == 0 else "", line) for number, line in enumerate(found.because)]
    if found.victims:
        rows.append(("victims", _victim_words(found.victims)))
    return rows


def memory_use_rows(use: MemoryUse, phase: str) -> list[tuple[str, str]]:
    """Planned beside measured, as far as either is known."""
    rows = []
    planned = [] if use.planned_bytes is None else [f"{format_bytes(use.planned_bytes)} for the whole process"]
    if use.planned_phase_bytes is not None:
        planned.append(f"{format_bytes(use.planned_phase_bytes)} of tensors in {phase}")
    if planned:
        rows.append(("planned", ", ".join(planned)))
    measured = [] if use.in_use_bytes is None else [f"{format_bytes(use.in_use_bytes)} for the whole process"]
    if use.allocated_bytes is not None:
        measured.append(f"{format_bytes(use.allocated_bytes)} of tensors")
    if use.tried_bytes is not None:
        measured.append(f"{format_bytes(use.tried_bytes)} more asked for")
    if measured:
        rows.append(("measured", ", ".join(measured)))
    if use.capacity_bytes is not None:
        rows.append(("the card has", format_bytes(use.capacity_bytes)))
    return rows


def _victim_words(victims: tuple[int, ...]) -> str:
    count = f"{plural(len(victims), 'other rank')} failed with it"
    return f"{count}: {', '.join(map(str, victims))}" if len(victims) <= MAX_VICTIMS else count


def _whose_log(found: Diagnosis) -> str:
    if found.rank is None:
        return ""
    return f"of rank {found.rank}" + (f" on {found.host}" if found.host else "")
