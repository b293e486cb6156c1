"""The process that traces: started in a session of its own, listened to, and gone whatever happens to us."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher.planner.tracing.failure import TraceFailed

TIMEOUT_S = 1800.0
PERIOD_S = 0.5
LAST_BREATH_S = 10.0  # between closing its stdout and ending
ERROR_LINES = 12
# One rank that computes nothing: more threads would only be started and stopped.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Progress = Callable[[str], None]
"""Told what the tracer is at, in words."""


def run_child(
    job: Path, out: Path, rank: int, *, environ: Mapping[str, str], progress: Progress, timeout_s: float = TIMEOUT_S
) -> None:
    """Trace a rank into `out`. Raises TraceFailed with what the process said last."""
    argv = (sys.executable, "-m", "jobs.trace", str(job), str(out), "--rank", str(rank), "--parent", str(os.getpid()))
    supervise(argv, errors=out.with_suffix(".stderr"), environ=environ, progress=progress, timeout_s=timeout_s)


def supervise(
    argv: Sequence[str], *, errors: Path, environ: Mapping[str, str], progress: Progress, timeout_s: float
) -> None:
    """Run a command to its end, its stderr kept in `errors`, its whole session killed whatever interrupts us.

    Raises TraceFailed where it does not end well or in time.
    """
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            tuple(argv),
            env={**environ, **THREADS, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            listen(child, progress, timeout_s)
            code = child.wait(timeout=LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            raise TraceFailed(f"the tracer was not done after {timeout_s:.0f} s") from None
        finally:
            end(child)
    if code:
        raise TraceFailed(reason(errors.read_text(errors="replace"), code))


def listen(child: subprocess.Popen[bytes], progress: Progress, timeout_s: float) -> None:
    """Hand on what the child says until it says no more. Raises TimeoutExpired."""
    assert child.stdout is not None
    deadline_s = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired(child.args, timeout_s)
            if not selector.select(PERIOD_S):
                continue
            line = child.stdout.readline()
            if not line:
                return
            progress(line.decode(errors="replace").strip())


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole session unless it has ended; nobody has use for half a trace."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def reason(errors: str, code: int) -> str:
    """Why a tracer failed: the last lines that say something."""
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.strip()]
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return "\n".join((f"the tracer ended with {ending}", *lines[-ERROR_LINES:]))
