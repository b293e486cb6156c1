"""Watch the ranks of one node from outside: which of them ended first, and how, where the kernel still knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from launcher.runs.agent_log import exit_codes
from launcher.runs.processes import ProcessId, read_environment, read_stat
from launcher.runs.records import RankDeath, RankPlace

SCAN_PERIOD_S = 0.3


class RankWatch:
    """Looks for the ranks among the processes of the node until it has found all, then only asks after those.

    A rank that has ended stays a zombie until the program that started it looks (torchrun every 0.1 s,
    DeepSpeed's launcher every second); its exit code is read when it is met as one.
    """

    def __init__(self, find: Callable[[], Sequence[ProcessId]], num_ranks: int) -> None:
        self._find = find
        self._num_ranks = num_ranks
        self._ranks: dict[int, ProcessId] = {}
        self._places: dict[int, RankPlace] = {}
        self._deaths: dict[int, RankDeath] = {}
        self._next_scan_s = 0.0

    @property
    def any_ended(self) -> bool:
        """Whether a rank has ended."""
        return bool(self._deaths)

    @property
    def all_ended(self) -> bool:
        """Whether every rank of the node was seen, and has ended."""
        return len(self._deaths) == self._num_ranks

    @property
    def places(self) -> tuple[RankPlace, ...]:
        """The ranks that were seen."""
        return tuple(self._places[rank] for rank in sorted(self._places))

    def look(self) -> None:
        """Take down which ranks have ended since the last look."""
        if len(self._ranks) < self._num_ranks and time.monotonic() >= self._next_scan_s:
            self._find_ranks()
            self._next_scan_s = time.monotonic() + SCAN_PERIOD_S
        for rank, process in self._ranks.items():
            if rank not in self._deaths:
                self._look_at(rank, process)

    def deaths(self, agent_text: str) -> tuple[RankDeath, ...]:
        """Ranks that have ended, in the order they were seen, with what the launching program says filled in."""
        unknown = tuple(death.rank for death in self._deaths.values() if death.exit_code is None)
        told = exit_codes(agent_text, unknown=unknown)
        seen = [
            death if death.exit_code is not None else _with_exit_code(death, told.get(death.rank))
            for death in self._deaths.values()
        ]
        now_s = time.time()
        unseen = [
            RankDeath(rank=r, seen_at_s=now_s, exit_code=code) for r, code in told.items() if r not in self._deaths
        ]
        return (*seen, *unseen)

    def _find_ranks(self) -> None:
        """A rank's data loader workers carry its RANK too; the rank itself is the oldest of them."""
        for process in self._find():
            environment = read_environment(process.pid)
            rank, local_rank = environment.get("RANK", ""), environment.get("LOCAL_RANK", "")
            if not rank.isdecimal() or int(rank) in self._ranks:
                continue
            number = int(rank)
            self._ranks[number] = process
            if local_rank.isdecimal():
                self._places[number] = RankPlace(rank=number, local_rank=int(local_rank), pid=process.pid)

    def _look_at(self, rank: int, process: ProcessId) -> None:
        stat = read_stat(process.pid)
        is_same = stat is not None and stat.start_ticks == process.start_ticks
        if stat is not None and is_same and not stat.is_zombie:
            return
        exit_code = stat.exit_code if stat is not None and is_same else None
        self._deaths[rank] = RankDeath(rank=rank, seen_at_s=time.time(), exit_code=exit_code)


def _with_exit_code(death: RankDeath, exit_code: int | None) -> RankDeath:
    return RankDeath(rank=death.rank, seen_at_s=death.seen_at_s, exit_code=exit_code)
