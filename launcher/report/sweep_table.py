"""A multirun for people: one table of all its plans before, one of all its results after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from launcher.errors import FitlaunchError
from launcher.planner.types import MemoryPlan, Verdict
from launcher.report.console import columns, heading, indented, show
from launcher.report.describe import plural
from launcher.report.plan_table import VERDICT_STYLE, common_unit, unit_words
from launcher.runs.outcome import Outcome
from launcher.runs.records import Status

STATUS_STYLE = {
    Status.QUEUED: "cyan",
    Status.FINISHED: "green",
    Status.STOPPED: "yellow",
    Status.CANCELLED: "yellow",
    Status.FAILED: "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What became of one cell. outcome is None where it was not started, or where nobody waited for its end; `note`
    then says how it stands. error: for which it could not be started. is_dropped: it does not fit, and was left out.
    """

    number: int
    overrides: tuple[str, ...]
    plan: MemoryPlan | None
    outcome: Outcome | None
    note: str = ""
    error: FitlaunchError | None = None
    is_dropped: bool = False


def differing(overrides: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The keys that are not the same in every cell, as they first appear, and each cell's values ('' where unset)."""
    cells = [dict(override.partition("=")[::2] for override in cell) for cell in overrides]
    keys = tuple(dict.fromkeys(key for cell in cells for key in cell))
    varied = tuple(key for key in keys if len({cell.get(key) for cell in cells}) > 1)
    return varied, [tuple(cell.get(key, "") for key in varied) for cell in cells]


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last word of each key, where no other key ends in it."""
    words = [key.rpartition(".")[2] for key in keys]
    return [word if words.count(word) == 1 else key for key, word in zip(keys, words, strict=True)]


def show_sweep(
    plans: Sequence[MemoryPlan], console: Console, *, overrides: Sequence[Sequence[str]], first: int = 0
) -> None:
    """Every cell's plan in one table; `overrides` are each cell's, in the order of `plans`. first: its number."""
    keys, values = differing(overrides)
    fitting = sum(plan.verdict is not Verdict.DOES_NOT_FIT for plan in plans)
    unit, unit_bytes = common_unit(plan.process_high_bytes for plan in plans)
    show(console, heading(f"{plural(len(plans), 'plan')}, {fitting} of them to run", f"{unit} per rank"))
    titles = ("", *short_keys(keys), "micro", "allocated", "process", "at most", "verdict")
    table = columns("r" + "w" * len(keys) + "rrrrw", titles)
    for number, (plan, cell) in enumerate(zip(plans, values, strict=True), start=first):
        table.add_row(
            Text(str(number), style="dim"),
            *cell,
            str(plan.spec.micro_batch),
            unit_words(plan.allocated_bytes, unit_bytes),
            unit_words(plan.process_bytes, unit_bytes),
            unit_words(plan.process_high_bytes, unit_bytes),
            Text(_verdict(plan), style=VERDICT_STYLE[plan.verdict]),
        )
    show(console, indented(table))


def _verdict(plan: MemoryPlan) -> str:
    if plan.verdict is Verdict.NO_CARD:
        return f"fits {plan.smallest_card}" if plan.smallest_card else "fits no listed card"
    return plan.verdict.value


def show_results(results: Sequence[CellResult], console: Console) -> None:
    """What became of every cell: how it ended, loss, speed, memory planned and measured, and where it lies."""
    keys, values = differing([result.overrides for result in results])
    finished = sum(r.outcome is not None and r.outcome.status is Status.FINISHED for r in results)
    unit, unit_bytes = common_unit(size for r in results for size in (_planned_bytes(r), _measured_bytes(r)))
    detail = f"{finished} of {len(results)} finished; allocated by the worst rank, {unit}"
    show(console, heading("Results", detail))
    titles = ("", *short_keys(keys), "status", "eval loss", "samples/s", "planned", "measured")
    table = columns("r" + "w" * len(keys) + "wrrrr", titles)
    folders = columns("rw")
    for result, cell in zip(results, values, strict=True):
        index = Text(str(result.number), style="dim")
        sizes = (unit_words(size, unit_bytes) for size in (_planned_bytes(result), _measured_bytes(result)))
        table.add_row(index, *cell, *_ending(result), *sizes)
        if result.outcome is not None:
            folders.add_row(index, str(result.outcome.run_dir))
    show(console, indented(table))
    if folders.row_count:
        show(console, heading("Run folders"), indented(folders))


def _ending(result: CellResult) -> tuple[Text, str, str]:
    outcome = result.outcome
    if outcome is None:
        return Text(result.note or "not started", style="yellow"), "-", "-"
    status = Text(outcome.status.value, style=STATUS_STYLE.get(outcome.status, ""))
    done = outcome.finished
    if done is None:
        return status, "-", "-"
    return (
        status,
        f"{loss_words(done.eval_loss_before)} -> {loss_words(done.eval_loss_after)}",
        f"{done.samples_per_s:.2f}",
    )


def _planned_bytes(result: CellResult) -> int:
    return result.plan.allocated_bytes if result.plan else 0


def _measured_bytes(result: CellResult) -> int:
    """The worst rank's peak; 0 where none was measured."""
    measurements = result.outcome.measurements if result.outcome else ()
    return max((measurement.allocated_bytes for measurement in measurements), default=0)


def loss_words(loss: float | None) -> str:
    """A loss with the digits that matter; '-' where it was not measured."""
    return "-" if loss is None else f"{loss:.4f}"
