"""How long the head of an attempt waits for nodes that do not say how they ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher.node.head as head_module
from launcher.node.head import Head, Meeting
from launcher.node.job import SchedulerJob
from launcher.runs.judge import Ending
from launcher.runs.layout import RunFolder
from launcher.runs.records import NodeEnd, RunState, Status, read_record, write_record
from launcher.spec import read_job
from tests.slurm.runs import slurm_launch, write

JOB = SchedulerJob(job_id="17", restart_count=0)
AT_ONCE_S = 5.0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of two nodes whose head has ended; nobody hears of the other."""
    monkeypatch.setattr(head_module, "OTHERS_WAIT_S", 0.0)
    monkeypatch.setattr(head_module, "NODE_LOSS_WAIT_S", 60.0)
    return write(slurm_launch(tmp_path))


def end(node: int) -> NodeEnd:
    return NodeEnd(
        attempt=1,
        node_rank=node,
        host=f"node{node}",
        started_at_s=1.0,
        ended_at_s=2.0,
        exit_code=1,
        deaths=(),
    )


def conclude(run: RunFolder, job: SchedulerJob | None, is_told_to_end: Callable[[], bool] = lambda: False) -> float:
    """Conclude attempt 1; how long that took."""
    head = Head(run, 1, read_job(run.job), job, keeps_state=True)
    run.attempt(1).mkdir(parents=True)
    assert head.accept(Meeting(head="node1", port=10_000)) is None
    ending = Ending(
        is_asked=False, forced="", is_abandoned=False, deaths=(), agent="torch.distributed.run", agent_exit_code=1
    )
    began_s = time.monotonic()
    head.conclude(end(0), ending, lambda *_: None, is_told_to_end)
    return time.monotonic() - began_s


def ask_to_stop(run: RunFolder) -> None:
    run.stop_file(1).write_text("TERM\n")


def say_how_it_ended(run: RunFolder) -> None:
    run.node(1, 1).mkdir(parents=True)
    write_record(run.node_end(1, 1), end(1))


@pytest.mark.parametrize("happens", [ask_to_stop, say_how_it_ended])
def test_until_the_scheduler_has_noticed_or_the_node_says_it(
    run: RunFolder, happens: Callable[[RunFolder], None]
) -> None:
    timer = threading.Timer(1.0, happens, (run,))
    timer.start()
    took_s = conclude(run, JOB)
    timer.join()
    assert 0.5 < took_s < AT_ONCE_S
    state = read_record(run.state, RunState)
    assert state is not None
    assert state.status is Status.FAILED


def test_not_at_all_where_there_is_no_scheduler_to_notice(run: RunFolder) -> None:
    assert conclude(run, None) < AT_ONCE_S


def test_not_at_all_where_this_node_is_told_to_end(run: RunFolder) -> None:
    assert conclude(run, JOB, lambda: True) < AT_ONCE_S


def test_an_attempt_that_is_superseded_has_no_say_in_the_state(run: RunFolder) -> None:
    def start_another() -> None:
        run.attempt(2).mkdir()
        assert Head(run, 2, read_job(run.job), JOB, keeps_state=True).accept(Meeting(head="node2", port=1)) is None

    timer = threading.Timer(1.0, start_another)
    timer.start()
    assert 0.5 < conclude(run, JOB) < AT_ONCE_S
    timer.join()
    state = read_record(run.state, RunState)
    assert state is not None
    assert (state.status, state.attempt) == (Status.RUNNING, 2)
    assert not run.requeue(1).exists()
