"""What can go wrong for a user, each with its exit code.

    FitlaunchError
    ├── InputError     2    the configuration is wrong; carries every problem found
    ├── DoesNotFit     3    the plan does not fit the device
    ├── SubmitError    4    the job could not be started or queued
    ├── JobFailed      5    the job started and failed
    └── Interrupted  130    the user stopped it

Anything else that escapes is a bug, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a configuration: the field, its value, the rule, and the way out."""

    field: str
    value: object
    rule: str
    way_out: str = ""

    def __str__(self) -> str:
        head = self.field if self.value is None else f"{self.field}={self.value}"
        tail = f": {self.way_out}" if self.way_out else ""
        return f"{head} {self.rule}{tail}"


class FitlaunchError(Exception):
    """Base of every error a user can cause. Its text is one screen at most, with no traceback."""

    exit_code = 1


class InputError(FitlaunchError):
    """The configuration is wrong. All its problems are reported together; nothing was started."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DoesNotFit(FitlaunchError):
    """The plan needs more memory than the device has; nothing was started."""

    exit_code = 3


class SubmitError(FitlaunchError):
    """The job could not be started or queued; nothing is running."""

    exit_code = 4


class JobFailed(FitlaunchError):
    """The job started and did not finish."""

    exit_code = 5


class Interrupted(FitlaunchError):
    """The user stopped the job."""

    exit_code = 130
