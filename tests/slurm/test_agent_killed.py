"""The agent of a node is killed: the job fails, and nothing of its ranks is left on any node."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launcher.runs.logs import nodes_of
from launcher.runs.processes import read_command
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.processes import send, wait_until
from tests.slurm.harness import wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, without_torchrun, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]
STUB = {"STUB_STEPS": "100000", "STUB_STEP_S": "0.1"}


def agent_of(bed: Bed, node: str) -> int:
    """The pid, as this host sees it, of the agent on a node. srun's own words name it, too."""
    for pid in bed.processes(node):
        words = read_command(pid)
        if words[2:4] == ("-m", "launcher.node"):
            return pid
    raise AssertionError(f"there is no agent on {node}")


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_killed_agent_ends_the_job_and_all_ranks(bed: Bed, tmp_path: Path, node: str) -> None:
    """Of the head, or of another node. Slurm does not start the job again: no node was lost."""
    run = write(without_torchrun(slurm_launch(tmp_path / "runs", run_id=f"agent-{node}", stub=STUB)))
    assert submit(bed, run).returncode == 0
    job_id = submission(run).job_id
    assert job_id is not None
    assert wait_until(lambda: len(read_metrics(run.metrics)) >= 3, timeout_s=60, poll_s=0.1)
    send(agent_of(bed, node), signal.SIGKILL)
    assert wait_for_state(bed, job_id, timeout_s=60) == "FAILED"
    assert nodes_of(run, 1) == (0, 1)
    assert not run.node_end(1, 0 if node == "node1" else 1).exists()
    assert not run.requeue(1).exists()
    assert not (run.root / "attempts" / "2").exists()
