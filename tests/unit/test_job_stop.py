"""Requests to stop, and how one rank alone sums over itself; agreement between ranks is in tests/distributed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.stop import StopRequest, first_cause, sum_over_ranks


@pytest.fixture
def handlers_put_back() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_a_file_asks_for_a_stop(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "stop-1")
    assert request.cause() is None
    (tmp_path / "stop-1").touch()
    assert request.cause() == "stop file"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_for_a_stop_and_does_nothing_else(
    tmp_path: Path, handlers_put_back: None, number: signal.Signals
) -> None:
    request = StopRequest(tmp_path / "stop-1")
    request.listen()
    os.kill(os.getpid(), number)
    assert request.cause() == number.name
    assert list(tmp_path.iterdir()) == []


def test_one_rank_agrees_with_itself() -> None:
    assert sum_over_ranks([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]
    assert first_cause("SIGTERM") == "SIGTERM"
