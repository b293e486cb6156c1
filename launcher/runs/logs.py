"""Where the ranks' own output lies: torchrun and DeepSpeed's launcher each have their own layout."""

from __future__ import annotations

from pathlib import Path

from launcher.runs.layout import RunFolder
from launcher.runs.tail import last_lines


def agent_log(run: RunFolder, attempt: int) -> Path:
    """What the program that starts the ranks says itself."""
    return run.logs(attempt) / "launcher.log"


def rank_logs(run: RunFolder, attempt: int, rank: int) -> tuple[Path, ...]:
    """The logs of one rank, the most telling first.

    torchrun: logs/<random>/attempt_0/<local rank>/{stderr,stdout}.log. DeepSpeed: logs/<time>_rank<rank>.log.
    """
    logs = run.logs(attempt)
    found = [path for name in ("stderr", "stdout") for path in sorted(logs.glob(f"*/attempt_*/{rank}/{name}.log"))]
    return (*found, *sorted(logs.glob(f"*_rank{rank}.log")))


def any_rank_started(run: RunFolder, attempt: int) -> bool:
    """Whether a rank was ever started: its log is opened just before."""
    logs = run.logs(attempt)
    return any(logs.glob("*/attempt_*/*/stderr.log")) or any(logs.glob("*_rank*.log"))


def log_tail(run: RunFolder, attempt: int, rank: int | None, *, count: int = 15) -> tuple[str, ...]:
    """The last lines that a rank wrote; the launching program's where no rank is named or it wrote nothing."""
    paths = () if rank is None else rank_logs(run, attempt, rank)
    for path in (*paths, agent_log(run, attempt)):
        lines = last_lines(path, count)
        if lines:
            return lines
    return ()
