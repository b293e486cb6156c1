"""Trace one rank of a job: `python -m jobs.trace JOB_JSON OUT [--rank R]`, started by launcher.planner.tracing.

Writes the trace to OUT, and what it is at to stdout, a line each. Ends with a code other than 0 and its reason on
stderr where something cannot be traced.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from jobs.tracing.session import record, set_environment
from launcher.planner.tracing.events import write
from launcher.spec import read_job

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to trace and where to write it. parent: the process that wants it, None for whoever is there."""

    job: Path
    out: Path
    rank: int
    parent: int | None


def main() -> None:
    """Trace one rank."""
    request = _parse()
    if request.parent is not None:
        end_with(request.parent)
    leave(trace(request))


def trace(request: Request) -> int:
    """Trace one rank; returns the exit code."""
    try:
        spec = read_job(request.job)
        set_environment(spec, request.rank)
        write(record(spec, request.rank, say, scratch=request.out.parent), request.out)
    except BaseException:  # noqa: BLE001 - the process ends here either way
        traceback.print_exc()
        return 1
    return 0


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, and at once where that is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        leave(1)


def leave(code: int) -> None:
    """End at once: what was replaced in torch's libraries must not be called while the interpreter goes down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parse() -> Request:
    parser = argparse.ArgumentParser(prog="jobs.trace", description="The memory of one rank of a job, on fake tensors.")
    parser.add_argument("job", type=Path, help="job.json, its micro batch chosen")
    parser.add_argument("out", type=Path, help="the trace file to write")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--parent", type=int, default=None, help="end when this process does")
    arguments = parser.parse_args()
    return Request(job=arguments.job, out=arguments.out, rank=arguments.rank, parent=arguments.parent)


if __name__ == "__main__":
    main()
