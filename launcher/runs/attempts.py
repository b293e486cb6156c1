"""Which attempts of a run there were, and which of them may still write: the newest that was accepted, alone.

The ranks of an attempt can outlive it: a node whose link is cut goes on computing while the scheduler starts the run
elsewhere. They must leave checkpoints and results alone from the moment that a later attempt has its attempt.json.
"""

from __future__ import annotations

from launcher.errors import InputError, Problem
from launcher.runs.layout import RunFolder
from launcher.runs.records import AttemptStart, read_record


def attempt_numbers(run: RunFolder) -> tuple[int, ...]:
    """The numbers of all attempts that have a folder, refused ones too."""
    folder = run.root / "attempts"
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()))


def last_attempt(run: RunFolder) -> int:
    """The number of the last attempt that was not refused, 0 where there was none."""
    return max((number for number in attempt_numbers(run) if not run.refused(number).exists()), default=0)


def next_attempt(run: RunFolder) -> int:
    """A number that no attempt has had."""
    return max(attempt_numbers(run), default=0) + 1


def superseded_by(run: RunFolder, attempt: int) -> int | None:
    """The newest accepted attempt after this one; None while this one may write."""
    later = (number for number in attempt_numbers(run) if number > attempt and run.attempt_start(number).exists())
    return max(later, default=None)


def finished_by(run: RunFolder) -> int | None:
    """The attempt that did all the work; None while there is none."""
    return next((number for number in attempt_numbers(run) if run.finished(number).exists()), None)


def refuse_if_finished(run: RunFolder) -> None:
    """Raise InputError for a run that is finished: it is not started again."""
    attempt = last_attempt(run)
    if attempt and run.finished(attempt).exists():
        way_out = f"its result is in {run.result}; launch anew"
        raise InputError([Problem(field="run", value=run.root.name, rule="is finished", way_out=way_out)])


def accepted_attempts(run: RunFolder, *, submission: int | None) -> tuple[AttemptStart, ...]:
    """The attempts of one submission, or those that no scheduler started, in order."""
    starts = (read_record(run.attempt_start(number), AttemptStart) for number in attempt_numbers(run))
    return tuple(start for start in starts if start is not None and start.submission == submission)
