"""One command of Slurm's: run with a time limit, in a session of its own, and its answer told from its silence."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from launcher.errors import SubmitError

ASK_TIMEOUT_S = 60.0
"""Slurm's own MessageTimeout is 10 s, and some sites give it 100."""

# What Slurm's commands say when the controller did not answer (22.05: src/common/slurm_errno.c); after any of these
# a request may still have been taken.
SILENCE = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Communication connection failure",
    "Communication shutdown failure",
    "Zero Bytes were transmitted or received",
    "Transport endpoint is not connected",
    "Connection refused",
    "Connection timed out",
    "Message receive failure",
    "failed to fetch config",
    "Unable to establish controller machine",
    "Slurm backup controller in standby mode",
    "Slurm temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Protocol authentication error",
    "Invalid authentication credential",
)


class SchedulerSilent(SubmitError):
    """No answer: nothing is known, least of all that there is no such job."""


class SchedulerRefused(SubmitError):
    """An answer, and it is no. Its text is Slurm's own."""


Ask = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed; raises SchedulerSilent or SchedulerRefused."""


def ask(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    text_in: str | None = None,
    timeout_s: float = ASK_TIMEOUT_S,
) -> str:
    """What the command prints on stdout, and on stderr where it prints nothing else.

    Raises SchedulerSilent when nobody answered in time, SchedulerRefused for any other failure.
    """
    try:
        process = subprocess.Popen(
            tuple(argv),
            env=env if env is None else dict(env),
            stdin=subprocess.DEVNULL if text_in is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a Ctrl-C is for us, and must not cut a submission in two
        )
    except OSError as error:
        raise SchedulerSilent(f"{argv[0]} cannot be run here ({error.strerror}): is this a login node?") from error
    try:
        out, err = process.communicate(text_in, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise SchedulerSilent(f"{argv[0]} had no answer from the controller within {timeout_s:.0f} s") from None
    finally:
        _end(process)
    said = " ".join(line.strip() for line in err.splitlines() if line.strip())
    if process.returncode == 0:
        return out or err
    if any(words in said for words in SILENCE):
        raise SchedulerSilent(said)
    raise SchedulerRefused(said or f"{argv[0]} ended with exit code {process.returncode}")


def _end(process: subprocess.Popen[str]) -> None:
    """Nothing of a command outlives its time."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
