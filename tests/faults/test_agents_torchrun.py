"""The agents of two nodes with real torchrun: what it does with signals, deaths and real ranks.

Two agents on this host stand in for two nodes. Each test ends by proving that nothing is left of the run.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.logs import rank_logs
from launcher.runs.markers import read_markers
from launcher.runs.records import Status
from launcher.targets.folder import write_run_folder
from tests.faults.agents import Nodes, assert_nothing_left, nodes, on_hosts, on_slurm, stub_job, stub_run
from tests.faults.harness import kill
from tests.launching import make_launch
from tests.ranks import log_text, losses, make_spec, run_ranks, started, write_run
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]
JOB = {"SLURM_JOB_ID": "17"}


@pytest.fixture
def stubs(tmp_path: Path) -> tuple[RunFolder, LaunchPlan]:
    return stub_run(tmp_path / "runs", on_slurm(stub_job(tmp_path), 2), real_torchrun=True, STUB_SAVE_S="3.0")


def rank_of_node(those: Nodes, node: int) -> int:
    """torchrun numbers the ranks of several nodes as it likes."""
    of_node = {process.pid for process in those.processes(node)}
    return next(rank for rank, process in those.ranks().items() if process.pid in of_node)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 1)])
def test_a_signal_to_everything_lets_the_ranks_save(
    stubs: tuple[RunFolder, LaunchPlan], number: signal.Signals, times: int
) -> None:
    """A third TERM ends torchrun itself, and by default USR1 would: its ranks go on saving, and the agent waits."""
    run, launch = stubs
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        for _ in range(times):
            both.signal_everything(number)
            time.sleep(0.5)
        assert both.wait() == [130, 130]
        stopped = read_markers(run, 1).stopped
        assert stopped is not None
        assert (stopped.cause, stopped.checkpoint) == (number.name, str(run.checkpoints / f"checkpoint-{stopped.step}"))
        assert run.requeue(1).exists() is (number is signal.SIGUSR1)
        assert [both.end(node).ended_by for node in (0, 1)] == ["", ""]
        assert_nothing_left(both)


def test_a_killed_rank(stubs: tuple[RunFolder, LaunchPlan]) -> None:
    run, launch = stubs
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        culprit, victim = rank_of_node(both, 1), rank_of_node(both, 0)
        kill(both.ranks()[culprit])
        assert both.wait() == [5, 5]
        assert [(death.rank, death.exit_code) for death in both.end(1).deaths] == [(culprit, -signal.SIGKILL)]
        assert [death.rank for death in both.end(0).deaths] == [victim]
        assert "RuntimeError" in rank_logs(run, 1, victim)[0].read_text()
        assert rank_logs(run, 1, culprit)[0].is_relative_to(run.logs(1, 1))
        assert both.state().status is Status.FAILED
        assert both.state().reason.startswith(f"rank {culprit}")
        assert_nothing_left(both)


def test_a_killed_agent(tmp_path: Path) -> None:
    """Without a scheduler: that one ends the other nodes, and requeues the job where a node was lost."""
    run, launch = stub_run(tmp_path / "runs", on_hosts(stub_job(tmp_path), 2), real_torchrun=True)
    with nodes(run, launch) as both:
        both.wait_for_steps()
        both.agents[1].kill()
        assert both.wait() == [5, -signal.SIGKILL]
        assert both.state().status is Status.FAILED
        assert not run.node_end(1, 1).exists()
        assert_nothing_left(both, within_s=30.0)  # torchrun gives up its ranks, one of which has ended itself


def test_two_nodes_train_as_one_does(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    make_alpaca_file(tmp_path / "data.json")
    spec = make_spec(tmp_path / "model", tmp_path / "data.json")
    alone = write_run(tmp_path / "alone", spec)
    assert run_ranks(alone, spec) == 0, log_text(alone)
    over_two = make_spec(tmp_path / "model", tmp_path / "data.json", world_size=1)
    launch = make_launch(tmp_path / "runs", spec=on_hosts(over_two, 2), run_id="run", python=sys.executable)
    run = write_run_folder(launch, now_s=time.time())
    with nodes(run, launch) as both:
        assert both.wait(120) == [0, 0]
        assert started(run).world_size == 2
        assert losses(run) == losses(alone)
        assert len(losses(run)) == 6
        assert_nothing_left(both)
