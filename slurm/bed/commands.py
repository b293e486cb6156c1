"""Commands in the namespaces of a process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from slurm.bed.packages import SEARCH

Argv = tuple[str, ...]
ALL_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what Slurm left in it, so that a bed inside a job is a cluster of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
    return kept | {"PATH": SEARCH} | dict(extra or {})


def inside(pid: int, argv: Argv, *, cwd: Path | None = None, kinds: Argv = ALL_NAMESPACES) -> Argv:
    """A command in the namespaces of a process. env enters the folder there, as nsenter would do so here."""
    folder = Path.cwd() if cwd is None else cwd
    return ("nsenter", f"--target={pid}", *kinds, "--", "env", f"--chdir={folder}", "--", *argv)


def run(
    argv: Argv, *, timeout_s: float, env: Mapping[str, str] | None = None, text_in: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own; on a timeout all of the session is killed."""
    with subprocess.Popen(
        argv,
        env=clean_environment(env),
        stdin=subprocess.DEVNULL if text_in is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text_in, timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)
