"""End what is left of a run on this host, whoever started it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from launcher.runs.layout import RunFolder
from launcher.runs.processes import (
    ProcessId,
    all_pids,
    end_processes,
    processes_of_run,
    read_command,
    read_stat,
)
from launcher.runs.registry import frozen_run_dir

# Ranks of a launcher that was killed need a moment to notice.
LEFTOVER_WAIT_S = 10.0
TERM_GRACE_S = 5.0
END = "--end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Processes of a run on this host: how many there were, and those that even KILL did not end."""

    num_found: int
    survivors: tuple[ProcessId, ...]


def end_leftovers(run: RunFolder) -> Leftovers:
    """End every process of the run on this host by force, its agent too: nothing of it starts anything again."""
    run_dir = frozen_run_dir(run)

    def find() -> tuple[ProcessId, ...]:
        return tuple(sorted({*processes_of_run(run_dir), *_agents({run_dir, str(run.root)})}))

    found = find()
    return Leftovers(num_found=len(found), survivors=end_processes(find, term_grace_s=TERM_GRACE_S) if found else ())


def _agents(run_dirs: set[str]) -> tuple[ProcessId, ...]:
    """Agents carry no mark of the run in their environment; their command line names it."""
    found = []
    for pid in all_pids():
        words = read_command(pid)
        if pid == os.getpid() or "launcher.node" not in words or END in words or not run_dirs & set(words):
            continue
        stat = read_stat(pid)
        if stat is not None and not stat.is_zombie:
            found.append(ProcessId(start_ticks=stat.start_ticks, pid=pid))
    return tuple(found)
