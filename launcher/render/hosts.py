"""What several hosts add to a launch plan: that its words can go over ssh and pdsh."""

from __future__ import annotations

from launcher.allowed import PATH
from launcher.errors import InputError, Problem


def refuse_unsayable_paths(*, run_dir: str, python: str) -> None:
    """Raise InputError for paths that a shell on the other side could misread; DeepSpeed does not even quote them."""
    problems = [
        Problem(field=field, value=value, rule="cannot be said over ssh", way_out=f"{way_out} {PATH.words}")
        for field, value, way_out in (
            ("runs_dir", run_dir, "use runs_dir=DIR with"),
            ("python", python, "install in a folder with"),
        )
        if not PATH.matches(value)
    ]
    if problems:
        raise InputError(problems)
