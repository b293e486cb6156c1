"""Run one of the project's own programs (python -m jobs.merge, ...) in the foreground; nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from launcher.errors import Interrupted, JobFailed
from launcher.node.signals import collect_stop_requests

POLL_S = 0.2


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run it to its end on this process's stdout and stderr. Returns its exit code.

    It has its own session; a user's stop is passed on to all of it, and a second one kills it. Raises Interrupted
    after a stop, and JobFailed when a signal that nobody here sent ended it.
    """
    argv = (sys.executable, "-m", module, *arguments)
    with collect_stop_requests() as requests:
        # Without PYTHONSAFEPATH a folder named jobs/ in the working directory would be run instead of ours.
        process = subprocess.Popen(argv, env={**os.environ, "PYTHONSAFEPATH": "1"}, start_new_session=True)
        passed_on = False
        try:
            while True:
                try:
                    exit_code = process.wait(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if requests.is_forced:
                        _signal_session(process.pid, signal.SIGKILL)
                    elif requests.first is not None and not passed_on:
                        passed_on = True
                        _signal_session(process.pid, requests.first)
        finally:
            _signal_session(process.pid, signal.SIGKILL)
            process.wait()
    if requests.first is not None:
        raise Interrupted(f"{module} was stopped")
    if exit_code < 0:
        raise JobFailed(f"{module} was ended by {signal.Signals(-exit_code).name}")
    return exit_code


def _signal_session(leader: int, number: signal.Signals) -> None:
    """Signal every process of the group; nothing where none is left."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return
