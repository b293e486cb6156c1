"""What came of a cancel: how the run stands, and what proves that nothing of it is left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from launcher.report.console import heading, indented, show
from launcher.report.runs_table import show_status
from launcher.runs.registry import RunSummary


def show_cancelled(summary: RunSummary, proof: Sequence[str], unproven: str, console: Console) -> None:
    """The run's status, then the proof, a line each; last what could not be shown."""
    show_status(summary, console)
    show(console, heading("What is left"), *(indented(Text(line)) for line in proof))
    if unproven:
        show(console, indented(Text(unproven, style="yellow")))
