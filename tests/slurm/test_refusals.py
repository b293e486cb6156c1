"""What a cluster would not take, or would misread, is refused before anything is written or queued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slurm.bed import Bed
from tests.slurm.harness import ROOT, queued_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


def launch(bed: Bed, tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The launcher on the login node, for a small job on CPU ranks."""
    small = ("device=cpu", "gpus=2", "train.global_batch=32", f"runs_dir={tmp_path}/runs", "cluster.time=10")
    words = (sys.executable, "launch.py", "cluster=slurm", *small, *overrides)
    return bed.login(words, cwd=ROOT, env={"COLUMNS": "400"})


def refusal(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What stands below the last headline, without its indents."""
    lines = [line.strip() for line in done.stderr.splitlines()]
    start = max(number for number, line in enumerate(lines) if line.startswith("error:"))
    return [line for line in lines[start:] if line]


def assert_nothing_happened(bed: Bed, tmp_path: Path) -> None:
    assert queued_jobs(bed) == []
    assert list(tmp_path.iterdir()) == []


def test_more_nodes_and_more_time_than_the_partition_has(bed: Bed, tmp_path: Path) -> None:
    """Slurm itself would take such a job, and let it wait for ever."""
    done = launch(bed, tmp_path, "nodes=4", "cluster.time=2:00:00")
    assert done.returncode == 2
    assert refusal(done) == [
        "error: 2 problems; nothing was started",
        "nodes=4",
        "rule     is more than the 3 that a job can have in main",
        "way out  use 3 or less",
        "cluster.time",
        "rule     is 120 min, more than the 60 of main: the job would wait for ever",
        "way out  use cluster.time=60 or less: a run that is cut off goes on from its checkpoint",
    ]
    assert_nothing_happened(bed, tmp_path)


def test_a_partition_that_is_not_there(bed: Bed, tmp_path: Path) -> None:
    done = launch(bed, tmp_path, "cluster.partition=nowhere")
    assert done.returncode == 2
    assert refusal(done) == [
        "error: 1 problem; nothing was started",
        "cluster.partition=nowhere",
        "rule     is no partition of this cluster",
        "way out  it has high, main, short, single",
    ]
    assert_nothing_happened(bed, tmp_path)


def test_more_gpus_than_any_node_has_is_slurms_own_refusal(bed: Bed, tmp_path: Path) -> None:
    done = launch(bed, tmp_path, "device=h100-80g", "gpus=16")
    assert done.returncode == 4
    assert refusal(done)[0].startswith(
        "error: Slurm would not take the job: allocation failure: Requested node configuration is not available: "
        "no node has as much as is asked of each: look at gpus,"
    )
    assert_nothing_happened(bed, tmp_path)


def test_no_controller(bed: Bed, tmp_path: Path) -> None:
    bed.stop_controller()
    done = launch(bed, tmp_path)
    assert done.returncode == 4
    assert "Unable to contact slurm controller" in refusal(done)[0]
    bed.start_controller()
    assert_nothing_happened(bed, tmp_path)


def test_whatever_a_shell_or_sbatch_could_misread(bed: Bed, tmp_path: Path) -> None:
    """Every value is refused at once, by its field; none of them is run on the way."""
    canary = tmp_path / "canary"
    hostile = {
        "cluster.partition": f'"main; touch {canary}"',
        "cluster.account": f'"a\n#SBATCH --wrap=touch {canary}"',
        "cluster.qos": f"'$(touch {canary})'",
        "cluster.reservation": f"'--wrap=touch {canary}'",
        "cluster.constraint": f"'\";touch {canary}'",
        "cluster.nodelist": f"['node1 -D /;touch {canary}']",
        "cluster.exclude": "['node2 --uid=0']",
        "cluster.gpu_type": f"'`touch {canary}`'",
        "cluster.container": f"'image --x;touch {canary}'",
        "cluster.container_mounts": f"['/data:/data;touch {canary}']",
        "cluster.network_interface": f"'eth0;touch {canary}'",
        "cluster.environment": f"['A=$(touch {canary})']",
    }
    done = launch(bed, tmp_path, *(f"{field}={value}" for field, value in hostile.items()))
    assert done.returncode == 2
    said = refusal(done)
    named = {line.partition("=")[0] for line in said if line.startswith("cluster.")}
    assert named == set(hostile), done.stderr
    assert_nothing_happened(bed, tmp_path)


def test_a_folder_that_a_shell_or_sbatch_could_misread(bed: Bed, tmp_path: Path) -> None:
    done = launch(bed, tmp_path, f"runs_dir='{tmp_path}/a $(touch canary) %x'")
    assert done.returncode == 2, done.stderr
    said = refusal(done)
    assert said[0] == "error: 1 problem; nothing was started"
    assert said[1].startswith("runs_dir=")
    assert_nothing_happened(bed, tmp_path)
