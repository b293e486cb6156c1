"""Whom the others waited for when a collective timed out. Every rank that waited says so; who did not come does not.

NCCL's watchdog (torch 2.13, ProcessGroupNCCL.cpp) also says how far each rank got: '[PG ... Rank 3] Exception (either
an error or timeout) detected by watchdog at work: 1580, last enqueued NCCL work: 1582, last completed NCCL work: 1579.'
A rank that has put fewer collectives into its queue than the others is behind them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.runs.diagnosis.signs import recognise_text
from launcher.runs.diagnosis.types import Evidence, Kind

ENQUEUED = re.compile(r"last enqueued NCCL work: (-?\d+)")
BARRIER = re.compile(r"Ranks? ([\d, ]+) failed to pass monitoredBarrier")


def awaited_ranks(evidence: Evidence) -> tuple[int, ...]:
    """The ranks that did not come to the collective that timed out; none where nobody can tell."""
    texts = _texts(evidence)
    named = {int(rank) for text in texts.values() for found in BARRIER.findall(text) for rank in found.split(",")}
    if named:
        return tuple(sorted(named))
    behind = _behind(texts)
    if behind:
        return behind
    waited = {rank for rank, text in texts.items() if recognise_text(text) is Kind.COLLECTIVE_TIMEOUT}
    absent = tuple(rank for rank in range(evidence.world_size) if rank not in waited)
    # Where most are silent, silence says nothing: the others were ended before their own clocks ran out.
    return absent if waited and len(absent) <= max(1, len(waited)) else ()


def _texts(evidence: Evidence) -> dict[int, str]:
    texts = {rank: "\n".join(lines) for rank, lines in evidence.rank_tails.items()}
    for failure in evidence.failures:
        texts[failure.rank] = f"{texts.get(failure.rank, '')}\n{failure.error_type}: {failure.message}"
    return texts


def _behind(texts: Mapping[int, str]) -> tuple[int, ...]:
    """Ranks that enqueued less than the furthest one."""
    enqueued = {rank: int(found[-1]) for rank, text in texts.items() if (found := ENQUEUED.findall(text))}
    furthest = max(enqueued.values(), default=0)
    return tuple(sorted(rank for rank, work in enqueued.items() if work < furthest))
