"""Which processes belong to a run, told from /proc (Linux); and signals that can only reach those.

A pid alone names nobody: it is used again after its process has ended. A process is a pid together with its
start time, and belongs to a run when the environment it was started with says so (FITLAUNCH_RUN). That finds
ranks wherever they went: torchrun puts each of them in a session of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RUN_VARIABLE = "FITLAUNCH_RUN"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process, for as long as the machine is up. start_ticks: clock ticks since boot (/proc/PID/stat field 22)."""

    start_ticks: int
    pid: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.start_ticks}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """What /proc/PID/stat says. exit_code is as subprocess has it (negative: the signal), None while it runs."""

    state: str
    parent: int
    start_ticks: int
    exit_code: int | None

    @property
    def is_zombie(self) -> bool:
        """Ended, and not yet waited for by its parent."""
        return self.state in "ZX"


def parse_stat(text: str) -> ProcessStat:
    """Parse /proc/PID/stat. The name in field 2 may hold spaces and brackets, so fields are counted from its end."""
    fields = text[text.rindex(")") + 2 :].split()
    state, wait_status = fields[0], int(fields[49])
    ended = state in "ZX"
    return ProcessStat(
        state=state,
        parent=int(fields[1]),
        start_ticks=int(fields[19]),
        exit_code=os.waitstatus_to_exitcode(wait_status) if ended else None,
    )


def read_stat(pid: int) -> ProcessStat | None:
    """What the kernel says of a pid now; None where there is no such process."""
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def this_process() -> ProcessId:
    """The process that runs this."""
    stat = read_stat(os.getpid())
    assert stat is not None, "this process has no entry in /proc"
    return ProcessId(start_ticks=stat.start_ticks, pid=os.getpid())


def is_alive(process: ProcessId) -> bool:
    """Whether this very process still runs; a zombie does not."""
    stat = read_stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks and not stat.is_zombie


def read_environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty where it has ended or is another user's."""
    try:
        text = (PROC / str(pid) / "environ").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _everyone(_environment: Mapping[str, str]) -> bool:
    return True


def processes_of_run(run_dir: str, which: Callable[[Mapping[str, str]], bool] = _everyone) -> tuple[ProcessId, ...]:
    """Living processes started for the run, the oldest first, without the process that asks: all of them, or those
    whose environment is as `which` says."""
    found = []
    for pid in all_pids():
        if pid == os.getpid():
            continue
        environment = read_environment(pid)
        if environment.get(RUN_VARIABLE) != run_dir or not which(environment):
            continue
        stat = read_stat(pid)
        if stat is not None and not stat.is_zombie:
            found.append(ProcessId(start_ticks=stat.start_ticks, pid=pid))
    return tuple(sorted(found))


def descendants(pid: int) -> tuple[ProcessId, ...]:
    """Every living process below this one, which is not among them. One whose parent has ended is below no more."""
    stats = {each: stat for each in all_pids() if (stat := read_stat(each)) is not None}
    family = {pid}
    while grown := {each for each, stat in stats.items() if stat.parent in family} - family:
        family |= grown
    below = [ProcessId(start_ticks=stats[each].start_ticks, pid=each) for each in family - {pid}]
    return tuple(sorted(process for process in below if not stats[process.pid].is_zombie))


def read_command(pid: int) -> tuple[str, ...]:
    """The command line of a process; empty where it has ended."""
    try:
        text = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return ()
    return tuple(text.split("\0")[:-1])


def all_pids() -> list[int]:
    """The pids that there are now."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]


def send_signal(process: ProcessId, number: signal.Signals) -> None:
    """Signal this very process, or nobody: the descriptor is opened first, so the pid cannot change hands between."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def wait_until_gone(find: Callable[[], Sequence[ProcessId]], *, timeout_s: float) -> tuple[ProcessId, ...]:
    """Wait until everyone that `find` has found is gone, or the time is over; returns who is left.

    Who was found once counts until it has ended: a process on its way out has no environment any more to be found by.
    """
    end = time.monotonic() + timeout_s
    left = set(find())
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = {process for process in left | set(find()) if is_alive(process)}
    return tuple(sorted(left))


def end_processes(
    find: Callable[[], Sequence[ProcessId]], *, term_grace_s: float, kill_wait_s: float = 10.0
) -> tuple[ProcessId, ...]:
    """TERM everyone `find` finds, KILL who is left after the grace; returns who survived even that.

    KILL is repeated over fresh lists, for a process may fork while it is being ended. Only a process in
    uninterruptible sleep (a hung device) survives.
    """
    for process in find():
        send_signal(process, signal.SIGTERM)
    left = wait_until_gone(find, timeout_s=term_grace_s)
    end = time.monotonic() + kill_wait_s
    while left and time.monotonic() < end:
        for process in left:
            send_signal(process, signal.SIGKILL)
        left = wait_until_gone(find, timeout_s=0.2)
    return left
