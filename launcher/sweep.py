"""A multirun: every cell is checked, all plans stand in one table, those that fit run in turn, then all results."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from launcher.errors import DoesNotFit, FitlaunchError, InputError, Interrupted, JobFailed
from launcher.execution import error_of, render_only, run
from launcher.report.errors import show_error
from launcher.report.plan_json import plans_json
from launcher.report.sweep_table import CellResult, show_results, show_sweep
from launcher.runs.outcome import Outcome
from launcher.runs.records import Status
from launcher.spec import Mode
from launcher.workflow import Prepared, too_large_words


def merge_problems(errors: Sequence[InputError]) -> InputError:
    """The problems of all cells, each once."""
    problems = {str(problem): problem for error in errors for problem in error.problems}
    return InputError(problems.values())


def run_sweep(cells: Sequence[Prepared], console: Console) -> list[Outcome | None]:
    """Show all plans, then render or run the cells that fit, one after the other.

    Returns each cell's outcome, None where it was not run. A cell that fails stops no other. A user's stop ends the
    sweep: Interrupted is raised after the table of results.
    """
    overrides = [cell.overrides for cell in cells]
    if cells[0].as_json:
        sys.stdout.write(plans_json([cell.plan for cell in cells]) + "\n")
    else:
        show_sweep([cell.plan for cell in cells], console, overrides=overrides)
    if cells[0].mode is Mode.PLAN:
        return [None] * len(cells)
    if cells[0].mode is Mode.RENDER:
        for cell in cells:
            if not cell.refused:
                render_only(cell, console)
        return [None] * len(cells)
    return _run_all(cells, console)


def _run_all(cells: Sequence[Prepared], console: Console) -> list[Outcome | None]:
    results: list[CellResult] = []
    interrupted = False
    for number, cell in enumerate(cells):
        outcome, note = None, ""
        if cell.refused:
            note = "does not fit"
        elif interrupted:
            note = "not started: stopped"
        else:
            console.rule(f"{number}  {' '.join(cell.overrides)}", align="left", style="dim")
            try:
                outcome = run(cell, console)
            except FitlaunchError as error:
                note = "not started"
                show_error(error, console)
        interrupted = interrupted or (outcome is not None and outcome.exit_code == Interrupted.exit_code)
        results.append(CellResult(overrides=cell.overrides, plan=cell.plan, outcome=outcome, note=note))
    show_results(results, console)
    return [result.outcome for result in results]


def error_of_sweep(cells: Sequence[Prepared], outcomes: Sequence[Outcome | None]) -> FitlaunchError | None:
    """The error whose exit code tells what happened in the sweep: a stop, then a failure, then a refusal."""
    for outcome in outcomes:
        if outcome is not None and outcome.exit_code == Interrupted.exit_code:
            return error_of(outcome)
    ran = cells[0].mode is Mode.RUN
    failed = sum(
        ran and not cell.refused and (outcome is None or outcome.status is not Status.FINISHED)
        for cell, outcome in zip(cells, outcomes, strict=True)
    )
    if failed:
        return JobFailed(f"{failed} of {len(cells)} jobs failed")
    refused = [cell for cell in cells if cell.refused]
    if not refused:
        return None
    if len(refused) == 1:
        return DoesNotFit(too_large_words(refused[0].plan))
    return DoesNotFit(f"{len(refused)} of {len(cells)} jobs do not fit and were not started")
