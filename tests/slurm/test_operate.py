"""See to runs in a queue and on its nodes: how they stand, their logs, their cancel, and why they failed."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launcher.runs.diagnosis.read import read_diagnosis
from launcher.runs.diagnosis.types import Kind
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers, read_node_ends
from launcher.runs.records import RankPlace, read_record
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.processes import send, wait_until
from slurm.bed.settings import HEAD
from tests.slurm.harness import NODE_LOSS_S, covered, job_state, queued_jobs, wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

FITLAUNCH = str(Path(sys.executable).parent / "fitlaunch")
QUICK = {"STUB_STEPS": "100000", "STUB_STEP_S": "0.1", "STUB_SAVE_EVERY": "5"}


def new_run(tmp_path: Path, name: str, stub: Mapping[str, str], *overrides: str, joins: bool = False) -> RunFolder:
    """A rendered run on two nodes. joins: real torchrun and real collectives; otherwise nobody meets."""
    how = {"STUB_JOIN": "1"} if joins else {}
    launch = slurm_launch(tmp_path / "runs", *overrides, run_id=name, nodes=2, stub=dict(stub) | how)
    if not joins:
        argv = tuple("tests.faults.stub_torchrun" if word == "torch.distributed.run" else word for word in launch.argv)
        launch = dataclasses.replace(launch, argv=argv)
    return write(launch)


def queue(bed: Bed, run: RunFolder) -> str:
    """Submit it; its job."""
    done = submit(bed, run)
    assert done.returncode == 0, done.stderr
    job_id = submission(run).job_id
    assert job_id is not None
    return job_id


def fitlaunch(bed: Bed, run: RunFolder, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    return bed.login((FITLAUNCH, *words), cwd=run.root.parent.parent, timeout_s=timeout_s)


def listed(bed: Bed, run: RunFolder) -> tuple[str, str]:
    """Status and reason, as `fitlaunch ls` has them."""
    done = fitlaunch(bed, run, "ls", "--json")
    (found,) = [each for each in json.loads(done.stdout)["runs"] if each["run_id"] == run.root.name]
    return found["status"], found["reason"]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    if not wait_until(condition, timeout_s=timeout_s, poll_s=0.1):
        raise AssertionError(f"{what} did not come")


def wait_for_steps(run: RunFolder, attempt: int, count: int = 6) -> None:
    """Wait until the ranks train, and have saved."""
    wait_for(
        lambda: sum(metrics.attempt == attempt for metrics in read_metrics(run.metrics)) >= count,
        f"step {count} of attempt {attempt}",
    )


def set_partition(bed: Bed, state: str) -> None:
    bed.must(HEAD, ("scontrol", "update", "PartitionName=main", f"State={state}"))


def test_from_the_queue_to_the_end(bed: Bed, tmp_path: Path) -> None:
    """Its logs are followed from the queue on; a controller that is gone makes nothing failed, and nobody wait."""
    run = new_run(tmp_path, "through", QUICK | {"STUB_STEPS": "120"})
    set_partition(bed, "DOWN")
    job_id = queue(bed, run)
    assert listed(bed, run) == ("queued", f"job {job_id} waits (PartitionDown), which does not come by itself")
    with subprocess.Popen(
        bed.command(HEAD, (FITLAUNCH, "logs", "-f", run.root.name, "--rank", "1"), cwd=tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as following:  # fmt: skip
        assert following.stderr is not None
        assert "PartitionDown" in following.stderr.readline()
        set_partition(bed, "UP")
        wait_for_steps(run, 1)
        assert listed(bed, run)[0] == "running"
        assert listed(bed, run)[1].startswith(f"job {job_id} on node[")
        bed.stop_controller()
        began_s = time.monotonic()
        told = fitlaunch(bed, run, "ls")
        assert time.monotonic() - began_s < 12
        assert told.stderr.splitlines()[1].split()[3:5] == ["unknown", job_id]
        assert sum("The scheduler does not answer" in line for line in told.stderr.splitlines()) == 1
        bed.start_controller()
        assert wait_for_state(bed, job_id) == "COMPLETED"
        out, err = following.communicate(timeout=30)
    assert following.returncode == 0, err
    assert listed(bed, run) == ("finished", "")
    rank_1 = read_record(run.node_ranks(1, 1), tuple[RankPlace, ...])
    assert rank_1 is not None
    assert [place.rank for place in rank_1] == [1]
    log = next(run.logs(1, 1).glob("*/attempt_0/0/stdout.log")).read_text()
    assert log
    assert log in out


def test_cancelled_in_the_queue_resumed_cancelled_again(bed: Bed, tmp_path: Path) -> None:
    run = new_run(tmp_path, "cancelled", QUICK)
    set_partition(bed, "DOWN")
    first = queue(bed, run)
    done = fitlaunch(bed, run, "cancel", run.root.name)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-2:] == [f"  job {first} is over", "  no attempt was ever started"]
    assert (job_state(bed, first), queued_jobs(bed)) == ("CANCELLED", [])
    assert listed(bed, run) == ("cancelled", "")
    again = fitlaunch(bed, run, "cancel", run.root.name)
    assert (again.returncode, "is not running: it is cancelled" in again.stderr) == (2, True)

    set_partition(bed, "UP")
    resumed = fitlaunch(bed, run, "resume", run.root.name)
    assert resumed.returncode == 0, resumed.stderr
    second = submission(run).job_id
    assert resumed.stderr.splitlines() == ["starting it", f"queued as job {second}, submission 2"]
    wait_for_steps(run, 1)
    refused = fitlaunch(bed, run, "resume", run.root.name)
    assert (refused.returncode, "is running already" in refused.stderr) == (2, True)

    done = fitlaunch(bed, run, "cancel", run.root.name)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"  job {second} is over",
        "  the ranks of attempt 1 have ended, as its 2 nodes say",
    ]
    stopped = read_markers(run, 1).stopped
    assert stopped is not None
    assert stopped.cause == "cancel"
    assert listed(bed, run) == ("cancelled", f"stopped after step {stopped.step}")
    assert queued_jobs(bed) == []

    resumed = fitlaunch(bed, run, "resume", run.root.name)
    assert resumed.stderr.splitlines()[0] == f"going on after step {stopped.step}"
    wait_for_steps(run, 2, 1)
    assert fitlaunch(bed, run, "cancel", "--now", run.root.name).returncode == 0
    assert queued_jobs(bed) == []


def test_a_worker_that_is_killed_is_named_with_its_node(bed: Bed, tmp_path: Path) -> None:
    """Real torchrun on two nodes, real collectives: its peer on the other node is a victim."""
    run = new_run(tmp_path, "killed", QUICK, joins=True)
    job_id = queue(bed, run)
    wait_for_steps(run, 1)
    (place,) = read_record(run.node_ranks(1, 1), tuple[RankPlace, ...]) or ()
    send(outside(bed, "node2", place.rank), signal.SIGKILL)
    assert wait_for_state(bed, job_id) == "FAILED"
    told = fitlaunch(bed, run, "status", run.root.name)
    found = read_diagnosis(run, 1)
    assert found is not None
    assert (found.kind, found.rank, found.node, found.host) == (Kind.SIGNAL, place.rank, 1, "node2")
    assert found.victims == (1 - place.rank,)
    assert found.scheduler is not None
    assert (found.scheduler.state, found.scheduler.nodes) == ("FAILED", ("node1", "node2"))
    assert f"rank {place.rank} on node2 was killed by SIGKILL" in told.stderr
    assert len(read_node_ends(run, 1)) == 2
    shown = fitlaunch(bed, run, "report", run.root.name)
    assert f"rank {place.rank} on node2 was killed by SIGKILL" in shown.stderr


def outside(bed: Bed, node: str, rank: int) -> int:
    """The pid, as this host sees it, of a rank on a node."""
    for pid in bed.processes(node):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environ and b"LOCAL_RANK=0" in environ:
            return pid
    raise AssertionError(f"rank {rank} is not on {node}")


def test_a_node_on_which_nothing_can_be_started_is_named(bed: Bed, tmp_path: Path) -> None:
    run = new_run(tmp_path, "nopython", QUICK)
    with covered(bed, "node2", Path(sys.executable).parent):
        job_id = queue(bed, run)
        assert wait_for_state(bed, job_id) == "FAILED"
    told = fitlaunch(bed, run, "status", run.root.name)
    found = read_diagnosis(run, 1)
    assert found is not None
    assert (found.kind, found.node, found.host) == (Kind.FILE_MISSING, 1, "node2")
    assert "no rank was started on node 1 (node2): slurmstepd-node2: error: execve()" in told.stderr


def test_a_node_that_loses_its_power_is_named(bed: Bed, tmp_path: Path) -> None:
    run = new_run(tmp_path, "power", QUICK, "cluster.requeue=false")
    job_id = queue(bed, run)
    wait_for_steps(run, 1)
    bed.power_off("node2")
    assert wait_for_state(bed, job_id, timeout_s=NODE_LOSS_S + 60) == "NODE_FAIL"
    told = fitlaunch(bed, run, "status", run.root.name)
    found = read_diagnosis(run, 1)
    assert found is not None, told.stderr
    assert (found.kind, found.node, found.host) == (Kind.NODE_LOST, 1, "node2")
    assert "node 1 (node2) was lost (NODE_FAIL)" in told.stderr
    assert f"the scheduler says of job {job_id}: NODE_FAIL" in told.stderr


def test_a_cancel_that_nobody_hears_is_a_cancel(bed: Bed, tmp_path: Path) -> None:
    """No controller: the run is marked, and its job comes to nothing when it starts after all."""
    run = new_run(tmp_path, "hung", QUICK)
    set_partition(bed, "DOWN")
    job_id = queue(bed, run)
    bed.stop_controller()
    done = fitlaunch(bed, run, "cancel", run.root.name)
    assert done.returncode == 4, done.stderr
    assert "starts no further attempt" in done.stderr
    bed.start_controller()
    set_partition(bed, "UP")
    assert wait_for_state(bed, job_id) == "COMPLETED"
    assert not (run.root / "attempts" / "1").exists()
    assert listed(bed, run) == ("cancelled", "")
