"""An error for the person who caused it: one screen, no traceback."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from launcher.errors import FitlaunchError, InputError, Problem
from launcher.report.console import columns, indented, show
from launcher.report.describe import plural

# More than a screen of problems hides the first; the rest are counted.
MAX_PROBLEMS = 12


def show_error(error: FitlaunchError, console: Console) -> None:
    """Print what is wrong; all the problems of a configuration together."""
    if isinstance(error, InputError):
        _show_problems(error.problems, console)
    else:
        show(console, Text.assemble(("error: ", "bold red"), str(error)))


def _show_problems(problems: tuple[Problem, ...], console: Console) -> None:
    title = f"{plural(len(problems), 'problem')}; nothing was started"
    show(console, Text.assemble(("error: ", "bold red"), (title, "bold")))
    for problem in problems[:MAX_PROBLEMS]:
        given = problem.field if problem.value is None else f"{problem.field}={problem.value}"
        table = columns("lw")
        table.add_row(Text("rule", style="dim"), problem.rule)
        if problem.way_out:
            table.add_row(Text("way out", style="dim"), Text(problem.way_out, style="green"))
        show(console, Text(), indented(Text(given, style="bold")), indented(indented(table)))
    if len(problems) > MAX_PROBLEMS:
        show(console, Text(f"\n  and {len(problems) - MAX_PROBLEMS} more"))
