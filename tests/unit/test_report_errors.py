"""Errors for the person who caused them: every problem, aligned, on one screen."""

from __future__ import annotations

import io
from collections.abc import Callable

from launcher.errors import FitlaunchError, InputError, JobFailed, Problem
from launcher.report.console import make_console
from launcher.report.errors import MAX_PROBLEMS, show_error

Golden = Callable[[str, str], None]
PROBLEMS = (
    Problem(field="method.rank", value=4, rule="has no effect with method=full", way_out="drop it, or use method=lora"),
    Problem(field="train.global_batch", value=63, rule="is not divided by the 8 ranks", way_out="64 is the nearest"),
    Problem(field="model", value=None, rule="is missing [a word in brackets]"),
)


def shown(error: FitlaunchError) -> str:
    out = io.StringIO()
    show_error(error, make_console(out))
    return out.getvalue()


def test_all_problems_of_a_configuration(golden: Golden) -> None:
    golden("report/problems.txt", shown(InputError(PROBLEMS)))


def test_many_problems_stay_on_one_screen() -> None:
    text = shown(InputError(PROBLEMS[:1] * 40))
    assert text.count("method.rank=4") == MAX_PROBLEMS
    assert text.endswith(f"and {40 - MAX_PROBLEMS} more\n")
    assert len(text.splitlines()) <= 60


def test_another_error_is_one_line() -> None:
    assert shown(JobFailed("rank 1 failed: [red]")) == "error: rank 1 failed: [red]\n"
