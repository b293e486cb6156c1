"""Processes and their namespaces, from /proc. A bed is found by what runs, never by a number that was kept."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")
INIT = Path(__file__).with_name("init.py")
OWN_DAEMONS = ("munged", "slurmctld", "slurmd", "slurmscriptd", "unshare")
KINDS = ("ipc", "mnt", "net", "pid", "uts")


def living() -> Iterator[int]:
    """Every process that is not a zombie."""
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    yield int(entry.name)


def command_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; empty for one that is gone."""
    try:
        return tuple((PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")[:-1])
    except OSError:
        return ()


def namespaces_of(pid: int) -> frozenset[str]:
    """The namespaces of a process; empty for one that is gone."""
    try:
        return frozenset(str((PROC / str(pid) / "ns" / kind).readlink()) for kind in KINDS)
    except OSError:
        return frozenset()


@contextlib.contextmanager
def hold_namespaces(pids: Iterable[int]) -> Iterator[frozenset[str]]:
    """The namespaces of these processes, held open: the number of one that is gone is the next one's that is made."""
    names = set[str]()
    with contextlib.ExitStack() as held:
        for pid in pids:
            for kind in KINDS:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    namespace = os.open(PROC / str(pid) / "ns" / kind, os.O_RDONLY)
                    held.callback(os.close, namespace)
                    names.add(str((PROC / "self" / "fd" / str(namespace)).readlink()))
        yield frozenset(names)


def is_own(pid: int) -> bool:
    """Whether a process in a bed is a part of it. sshd is as long as it listens; its sessions are somebody's."""
    command = " ".join(command_of(pid)[:5])
    if str(INIT) in command or not command:
        return True
    return name_of(pid) in OWN_DAEMONS or (name_of(pid) == "sshd" and "[listener]" in command)


def name_of(pid: int) -> str:
    """The name of a process; empty for one that is gone."""
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def pid_namespace(pid: int) -> frozenset[str]:
    """The namespace that numbers the processes of a host, whose process 1 is given."""
    return frozenset(name for name in namespaces_of(pid) if name.startswith("pid:"))


def find_init(steps: Path) -> int | None:
    """Process 1 of the namespace that was made with these steps, as the host numbers it."""
    for pid in living():
        command = command_of(pid)
        # unshare, its parent, has the same words behind its own
        if str(INIT) in command[1:4] and str(steps) in command[4:5]:
            return pid
    return None


def members_of(namespaces: frozenset[str]) -> tuple[int, ...]:
    """The processes that are in one of these namespaces."""
    return tuple(pid for pid in living() if namespaces_of(pid) & namespaces)


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until(condition: Callable[[], bool], *, timeout_s: float, poll_s: float = 0.01) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(poll_s)
    return True
