"""Trace one rank of a job: `python -m jobs.trace JOB_JSON OUT [--rank R]`, started by launcher.planner.tracing.

Writes the trace to OUT. Ends with a code other than 0 and its reason on stderr where something cannot be traced.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from jobs.tracing.session import record, set_environment
from launcher.planner.tracing import events
from launcher.spec import read_job


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to trace and where to write it."""

    job: Path
    out: Path
    rank: int


def main() -> None:
    """Trace one rank."""
    request = _parse()
    spec = read_job(request.job)
    set_environment(spec, request.rank)
    try:
        events.write(record(spec, request.rank), request.out)
    except BaseException:  # noqa: BLE001 - the process ends here either way
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _leave(code: int) -> None:
    """End at once: what was replaced in torch's libraries must not be called while the interpreter goes down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parse() -> Request:
    parser = argparse.ArgumentParser(prog="jobs.trace", description="The memory of one rank of a job, on fake tensors.")
    parser.add_argument("job", type=Path, help="job.json, its micro batch chosen")
    parser.add_argument("out", type=Path, help="the trace file to write")
    parser.add_argument("--rank", type=int, default=0)
    arguments = parser.parse_args()
    return Request(job=arguments.job, out=arguments.out, rank=arguments.rank)


if __name__ == "__main__":
    main()
