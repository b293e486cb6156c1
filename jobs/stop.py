"""Stopping: a file or a TERM asks for it, and all ranks agree on it at the end of a step.

A signal reaches some ranks earlier than others, and a file is seen at different times; only a collective makes every
rank stop after the same step. Nothing but setting a flag happens inside the signal handler.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist


class StopRequest:
    """Whether this rank has been asked to stop, and by what."""

    def __init__(self, stop_file: Path) -> None:
        self._stop_file = stop_file
        self._signal: str | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1 as requests to stop."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def cause(self) -> str | None:
        """What asked for the stop: a signal's name, 'stop file', or None."""
        if self._signal is not None:
            return self._signal
        return "stop file" if self._stop_file.exists() else None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The sum of each value over all ranks, in float64; the values themselves on a single rank."""
    if not dist.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def first_cause(cause: str | None) -> str | None:
    """The cause of the lowest rank that has one, told to all ranks; called only once they know that there is one."""
    if not dist.is_initialized():
        return cause
    causes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(causes, cause)
    return next((known for known in causes if known is not None), None)
