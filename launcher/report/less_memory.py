"""After a run that ran out of memory: what would take less, in the order in which people try it."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.text import Text

from launcher.models import model_shape
from launcher.planner.estimate import Estimator
from launcher.planner.fit.advice import out_of_memory_advice
from launcher.report.console import columns, heading, indented, show
from launcher.report.plan_table import ratio_words
from launcher.runs.diagnosis.types import Override
from launcher.spec import JobSpec
from launcher.units import format_bytes


def less_memory(spec: JobSpec) -> tuple[Override, ...]:
    """What takes less memory than the job that ran, as it is kept with a diagnosis."""
    advice = out_of_memory_advice(Estimator(model_shape(spec.model.config)), spec)
    return tuple(
        Override(
            words=item.overrides,
            saved_bytes=item.saved_bytes,
            time_ratio=item.time_ratio,
            changes_training=item.changes_training,
            note=item.note,
        )
        for item in advice
    )


def show_less_memory(spec: JobSpec, console: Console) -> None:
    """Ready overrides, how much less each rank is planned to need with each, and the estimated time."""
    advice = less_memory(spec)
    if not advice:
        return
    table = columns("wrrw", ("", "needs less by", "time, about", ""))
    for item in advice:
        command = Text(shlex.join(item.words), style="bold")
        effect = f"{item.note}; another training" if item.changes_training else item.note
        table.add_row(command, format_bytes(item.saved_bytes), ratio_words(item.time_ratio), effect)
    show(
        console, heading("What takes less memory", "planned, for each rank; to be tried in this order"), indented(table)
    )
