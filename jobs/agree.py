"""What all ranks agree on by a collective, so that every one of them does the same after the same step."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

SIGNAL_NAMES = frozenset(number.name for number in signal.Signals)


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The sum of each value over all ranks, in float64; the values themselves on a single rank."""
    if not dist.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def agreed_cause(cause: str | None) -> str | None:
    """The cause of a stop, told to all ranks; called only once they know that there is one."""
    if not dist.is_initialized():
        return cause
    causes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(causes, cause)
    return most_telling(causes)


def most_telling(causes: list[str | None]) -> str | None:
    """The cause of the lowest rank that has one. One that has not seen the file yet knows only the signal."""
    known = [cause for cause in causes if cause is not None]
    return next((cause for cause in known if cause not in SIGNAL_NAMES), next(iter(known), None))
