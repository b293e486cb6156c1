"""The last that the launcher of an attempt writes down of it, on one host or on several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from launcher.errors import SubmitError
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Outcome
from launcher.runs.records import Status
from launcher.runs.state import write_state


def not_started(run: RunFolder, attempt: int, text: str) -> SubmitError:
    """The error of an attempt that came to nothing."""
    with contextlib.suppress(OSError):
        write_state(run, Status.FAILED, attempt=attempt, exit_code=SubmitError.exit_code, reason=text)
    return SubmitError(f"run {run.root.name} could not be started: {text}")


def write_last_state(run: RunFolder, outcome: Outcome, say: Callable[[str], None]) -> None:
    """How it ended. say: what a user is told where the disk is full."""
    try:
        write_state(
            run, outcome.status, attempt=outcome.attempt, exit_code=outcome.exit_code, reason=outcome.first_cause
        )
    except OSError as error:
        say(f"{run.state} could not be written: {error.strerror or error}")
