"""Where the ranks' own output lies: torchrun and DeepSpeed's launcher each have their own layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from launcher.runs.layout import RunFolder
from launcher.runs.records import RankPlace, read_record
from launcher.runs.tail import last_lines


def agent_log(run: RunFolder, attempt: int, node: int = 0) -> Path:
    """What the program that starts the ranks of a node says itself."""
    return run.logs(attempt, node) / "launcher.log"


def rank_logs(run: RunFolder, attempt: int, rank: int) -> tuple[Path, ...]:
    """The logs of one rank, the most telling first.

    torchrun: logs/<random>/attempt_0/<local rank>/{stderr,stdout}.log. DeepSpeed: logs/<time>_rank<rank>.log.
    """
    found: list[Path] = []
    place = _place(run, attempt, rank)
    if place is not None:
        node, local_rank = place
        for name in ("stderr", "stdout"):
            found += sorted(run.logs(attempt, node).glob(f"*/attempt_*/{local_rank}/{name}.log"))
    return (*found, *sorted(run.attempt(attempt).glob(f"node-*/logs/*_rank{rank}.log")))


def any_rank_started(run: RunFolder, attempt: int) -> bool:
    """Whether a rank was ever started on any node: its log is opened just before."""
    folder = run.attempt(attempt)
    return any(folder.glob("node-*/logs/*/attempt_*/*/stderr.log")) or any(folder.glob("node-*/logs/*_rank*.log"))


def log_tail(run: RunFolder, attempt: int, rank: int | None, *, count: int = 15) -> tuple[str, ...]:
    """The last lines that a rank wrote; the launching program's where no rank is named or it wrote nothing."""
    paths = () if rank is None else rank_logs(run, attempt, rank)
    for path in (*paths, *(agent_log(run, attempt, node) for node in nodes_of(run, attempt))):
        lines = last_lines(path, count)
        if lines:
            return lines
    return ()


def job_logs(run: RunFolder) -> tuple[Path, ...]:
    """What the scheduler kept of the output of its jobs, the oldest first."""
    return tuple(sorted(run.root.glob("slurm-*.out"), key=lambda path: (path.stat().st_mtime, path.name)))


def logs_folder(run: RunFolder, attempt: int) -> Path:
    """Where the logs of an attempt lie: those of its one node, or of all."""
    nodes = nodes_of(run, attempt)
    return run.attempt(attempt) if len(nodes) > 1 else run.logs(attempt, *nodes)


def nodes_of(run: RunFolder, attempt: int) -> tuple[int, ...]:
    """The nodes that have left anything of an attempt."""
    names = (path.name.removeprefix("node-") for path in run.attempt(attempt).glob("node-*"))
    return tuple(sorted(int(name) for name in names if name.isdecimal()))


def places(run: RunFolder, attempt: int) -> Iterator[tuple[int, RankPlace]]:
    """Every rank that an agent has seen, with its node. torchrun on several nodes does not number them in order."""
    for node in nodes_of(run, attempt):
        try:
            known = read_record(run.node_ranks(attempt, node), tuple[RankPlace, ...]) or ()
        except msgspec.DecodeError:
            continue
        yield from ((node, place) for place in known)


def _place(run: RunFolder, attempt: int, rank: int) -> tuple[int, int] | None:
    """Node and local rank; on a single node they need not have been seen."""
    for node, place in places(run, attempt):
        if place.rank == rank:
            return node, place.local_rank
    return (0, rank) if nodes_of(run, attempt) == (0,) else None
