"""Requests to stop, and how one rank alone sums over itself; agreement between ranks is in tests/distributed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.agree import agreed_cause, most_telling, sum_over_ranks
from jobs.stop import StopRequest


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
    (tmp_path / "stop-1").write_text("time limit\nby the batch script\n")
    assert request.cause() == "time limit"


def test_the_file_says_more_than_the_signal_that_came_with_it(tmp_path: Path, handlers_put_back: None) -> None:
    request = StopRequest(tmp_path / "stop-1")
    request.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert request.cause() == "SIGTERM"
    (tmp_path / "stop-1").write_text("cancel\n")
    assert request.cause() == "cancel"


@pytest.mark.parametrize(
    ("causes", "agreed"),
    [
        ([None, None, "SIGTERM"], "SIGTERM"),
        (["SIGTERM", None, "time limit"], "time limit"),  # rank 0 has not seen the file yet
        (["cancel", "time limit"], "cancel"),
        ([None, None], None),
    ],
)
def test_what_asked_for_a_stop_is_agreed_on(causes: list[str | None], agreed: str | None) -> None:
    assert most_telling(causes) == agreed


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
    assert agreed_cause("SIGTERM") == "SIGTERM"
