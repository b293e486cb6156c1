"""The stop file of an attempt: asks all its ranks, wherever they are, to save and stop, and says why.

The first who asks is heard: a job at its time limit is asked once for that, and then told to end as any other is.
"""

from __future__ import annotations

from launcher.runs.layout import RunFolder
from launcher.runs.records import write_exclusively

TIME_LIMIT = "time limit"
CANCEL = "cancel"


def ask_to_stop(run: RunFolder, attempt: int, cause: str) -> bool:
    """Ask for a stop; False where somebody has asked before. Raises OSError where the file cannot be written."""
    return write_exclusively(run.stop_file(attempt), cause + "\n")


def stop_cause(run: RunFolder, attempt: int) -> str | None:
    """Why the ranks were asked to stop; None where they were not."""
    try:
        return run.stop_file(attempt).read_text(errors="replace").partition("\n")[0]
    except FileNotFoundError:
        return None
