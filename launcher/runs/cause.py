"""Why a run failed: the first cause among what ranks wrote about themselves and how they were seen to end. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.runs.records import Failed, RankDeath

# A rank that dies without a word takes its peers with it: they fail in the next collective, and do write. Their
# notes may even be older than the moment its death was noticed, but not by more than this.
NOTICE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One sentence for a person, and the rank whose log tells more."""

    text: str
    rank: int | None


def first_cause(failures: Sequence[Failed], deaths: Sequence[RankDeath], *, otherwise: str) -> Cause:
    """The first cause of a failed attempt; `otherwise` is said where neither a note nor a death tells anything.

    A rank killed by a signal leaves no note, so its death comes before notes written at about the same time.
    TERM does not count: it is how the others are told to end.
    """
    notes = sorted(failures, key=lambda failure: failure.time_s)
    silent = [death for death in deaths if death.rank not in {note.rank for note in notes} and death.exit_code]
    silent.sort(key=lambda death: (not _is_killed(death), death.seen_at_s, death.rank))
    if silent and _is_killed(silent[0]) and (not notes or silent[0].seen_at_s <= notes[0].time_s + NOTICE_S):
        return Cause(text=_describe_death(silent[0]), rank=silent[0].rank)
    if notes:
        return Cause(text=_describe_note(notes[0]), rank=notes[0].rank)
    if silent:
        return Cause(text=_describe_death(silent[0]), rank=silent[0].rank)
    return Cause(text=f"the ranks ended without a result; {otherwise}", rank=None)


def is_out_of_memory(failure: Failed) -> bool:
    """Whether a rank failed for want of memory: torch's own error, or what CUDA, NCCL and the CPU allocator say."""
    message = failure.message.lower()
    return failure.error_type in ("OutOfMemoryError", "MemoryError") or any(
        words in message for words in ("out of memory", "can't allocate memory")
    )


def _is_killed(death: RankDeath) -> bool:
    return death.exit_code is not None and death.exit_code < 0 and death.exit_code != -signal.SIGTERM


def _describe_note(note: Failed) -> str:
    first_line = note.message.strip().partition("\n")[0]
    return (
        f"rank {note.rank} failed with {note.error_type}: {first_line}"
        if first_line
        else (f"rank {note.rank} failed with {note.error_type}")
    )


def _describe_death(death: RankDeath) -> str:
    assert death.exit_code is not None
    text = f"rank {death.rank} {describe_exit(death.exit_code)}"
    if death.exit_code == -signal.SIGKILL:
        return f"{text}, which is also what the kernel does when the host is out of memory (see dmesg)"
    return text


def describe_exit(exit_code: int | None) -> str:
    """An exit code, as subprocess has it, in words."""
    if exit_code is None:
        return "did not end"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"
