"""The check-up of nodes, over Slurm and over ssh: it names the one that is not fit, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slurm.bed import Bed
from slurm.bed.settings import HEAD
from tests.slurm.harness import covered, queued_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

PYTHON_FOLDER = Path(sys.executable).parent
FITLAUNCH = str(PYTHON_FOLDER / "fitlaunch")
ON_SLURM = ("cluster=slurm", "device=cpu", "gpus=1", "cluster.time=5")


def doctor(bed: Bed, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return bed.login((FITLAUNCH, "doctor", *words), cwd=cwd, timeout_s=200)


def lines_of(done: subprocess.CompletedProcess[str], title: str) -> list[str]:
    """The lines below a heading."""
    lines = done.stderr.splitlines()
    below = lines[lines.index(title) + 1 :]
    return [line.strip() for line in below[: below.index("") if "" in below else None]]


def test_two_nodes_that_are_fit(bed: Bed, tmp_path: Path) -> None:
    done = doctor(bed, tmp_path, *ON_SLURM, "nodes=2")
    assert done.returncode == 0, done.stderr
    (reduced,) = lines_of(done, "All-reduce")
    assert reduced.startswith("gloo over 2 ranks on node1, node2: 16.0 MiB in ")
    assert done.stderr.splitlines()[-1] == "Nothing is wrong."
    assert queued_jobs(bed) == []
    assert list((tmp_path / "runs" / "doctor").iterdir()) == []


def test_over_ssh(bed: Bed, tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    done = doctor(bed, tmp_path, "cluster=hosts", f"cluster.hostfile={hostfile}", "device=cpu")
    assert done.returncode == 0, done.stderr
    (reduced,) = lines_of(done, "All-reduce")
    assert reduced.startswith("gloo over 2 ranks on node1, node2: 16.0 MiB in ")


def test_a_node_without_python_and_one_with_a_full_shm(bed: Bed, tmp_path: Path) -> None:
    with covered(bed, "node2", PYTHON_FOLDER), covered(bed, "node3", Path("/dev/shm"), "2m"):
        done = doctor(bed, tmp_path, *ON_SLURM, "nodes=3", "--no-all-reduce")
    assert done.returncode == 4, done.stderr
    wrong = lines_of(done, "What is wrong")
    assert wrong[0].startswith("node2 said nothing of itself: ")
    assert wrong[1].startswith("Python is not there on that node: ")
    assert wrong[2] == "node3 has 2.0 MiB of 2.0 MiB free in /dev/shm, and the ranks need 16.0 MiB"
    assert lines_of(done, "Keep away from them") == ["--exclude=node2,node3", "cluster.exclude=[node2,node3]"]
    assert queued_jobs(bed) == []


def test_a_node_whose_network_is_down(bed: Bed, tmp_path: Path) -> None:
    """Two nodes have the network that the job is to use; of the third it is down."""
    for number in (1, 2, 3):
        for words in (
            ("ip", "link", "add", "ib0", "type", "veth", "peer", "name", "ib0-peer"),
            ("ip", "link", "set", "ib0-peer", "up"),
            ("ip", "address", "add", f"10.99.0.{number}/24", "dev", "ib0"),
            ("ip", "link", "set", "ib0", "down" if number == 3 else "up"),
        ):
            bed.must(f"node{number}", words)
    try:
        done = doctor(bed, tmp_path, *ON_SLURM, "nodes=3", "cluster.network_interface=ib0", "--no-all-reduce")
    finally:
        for number in (1, 2, 3):
            bed.must(f"node{number}", ("ip", "link", "delete", "ib0"))
    assert done.returncode == 4, done.stderr
    wrong = lines_of(done, "What is wrong")
    assert "node3 cluster.network_interface=ib0 has no IPv4 address on node3" in wrong


def test_what_is_wrong_here_is_said_before_anything_is_queued(bed: Bed, tmp_path: Path) -> None:
    done = doctor(bed, tmp_path, *ON_SLURM, "nodes=9")
    assert done.returncode == 4, done.stderr
    assert lines_of(done, "What is wrong")[0] == "nodes=9 is more than the 3 that a job can have in main"
    bed.stop_controller()
    done = doctor(bed, tmp_path, *ON_SLURM, "nodes=2")
    assert done.returncode == 4, done.stderr
    assert lines_of(done, "What is wrong")[0].startswith("Slurm does not answer: ")
    assert not (tmp_path / "runs").exists()


def test_a_check_up_that_does_not_start_is_taken_back(bed: Bed, tmp_path: Path) -> None:
    bed.must(HEAD, ("scontrol", "update", "NodeName=node1,node2,node3", "State=DRAIN", "Reason=test"))
    try:
        done = doctor(bed, tmp_path, *ON_SLURM, "nodes=1", "--patience", "3")
    finally:
        bed.must(HEAD, ("scontrol", "update", "NodeName=node1,node2,node3", "State=RESUME"))
    assert done.returncode == 4, done.stderr
    assert "not started within 3 s, and cancelled (--patience)" in done.stderr
    assert list((tmp_path / "runs" / "doctor").iterdir()) == []
    assert queued_jobs(bed) == []
