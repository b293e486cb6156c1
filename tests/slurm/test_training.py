"""Real training through sbatch, as a user types it: two nodes of two ranks each, and one such job that is preempted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers
from launcher.runs.records import EvalMetrics, Finished, TrainMetrics, read_record
from launcher.runs.registry import list_runs
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.packages import SEARCH
from slurm.bed.processes import wait_until
from tests.slurm.harness import ROOT, submit, wait_for_state
from tests.slurm.runs import submission
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TWO_BY_TWO = ("cluster=slurm", "cluster.time=20", "nodes=2", "gpus=2", "device=cpu")
NUM_STEPS = 40


def queue(bed: Bed, runs_dir: Path, *overrides: str) -> tuple[RunFolder, str]:
    """A job queued by the launcher's own command; its run and its id."""
    known = {run.run_id for run in list_runs(runs_dir)}
    words = (sys.executable, "launch.py", *TWO_BY_TWO, f"runs_dir={runs_dir}", *overrides)
    done = bed.login(words, cwd=ROOT, env={"PATH": SEARCH, "OMP_NUM_THREADS": "1"}, timeout_s=120)
    assert done.returncode == 0, done.stderr
    (run,) = (RunFolder(run.run_dir) for run in list_runs(runs_dir) if run.run_id not in known)
    job_id = submission(run).job_id
    assert job_id is not None
    return run, job_id


def wait_until_completed(bed: Bed, run: RunFolder, job_id: str) -> None:
    state = wait_for_state(bed, job_id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=400)
    assert state == "COMPLETED", log(run, job_id)


def log(run: RunFolder, job_id: str) -> str:
    path = run.root / f"slurm-{job_id}.out"
    return path.read_text() if path.exists() else "no log"


def losses(run: RunFolder) -> dict[int, float]:
    """The loss of each training step."""
    found = [(metrics.step, metrics.loss) for metrics in read_metrics(run.metrics) if isinstance(metrics, TrainMetrics)]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return dict(found)


def held_out_loss(run: RunFolder) -> float:
    return [metrics.loss for metrics in read_metrics(run.metrics) if isinstance(metrics, EvalMetrics)][-1]


def test_a_preempted_job_ends_with_the_losses_of_one_that_is_not(bed: Bed, tmp_path: Path) -> None:
    """Both at once on the same nodes, each by FSDP, whose checkpoints are in pieces; only one lies where it may be
    preempted, by a job that needs one of its cores."""
    model, rows = make_tiny_model(tmp_path / "model"), make_alpaca_file(tmp_path / "rows.json", 80)
    job = (
        "model=path", f"model.path={model}", "data=alpaca", f"data.path={rows}", "method=full", "shard=fsdp",
        "train.global_batch=8", "train.sequence_length=64", f"train.max_steps={NUM_STEPS}", "train.learning_rate=5e-3",
        "cluster.nodelist=['node[1-2]']",
    )  # fmt: skip
    alone, its_job = queue(bed, tmp_path / "runs", *job, "cluster.partition=high")
    run, job_id = queue(bed, tmp_path / "runs", *job)
    if not wait_until(lambda: len(read_metrics(run.metrics)) >= 3, timeout_s=200, poll_s=0.05):
        raise AssertionError(log(run, job_id))
    fifteen = ("--partition=high", "--nodelist=node[1-2]", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=15")
    other = submit(bed, "#!/bin/bash\nsleep 1\n", *fifteen, "--output=/dev/null")
    wait_for_state(bed, other, timeout_s=120)
    wait_until_completed(bed, run, job_id)
    wait_until_completed(bed, alone, its_job)
    stopped, resumed = read_markers(run, 1).stopped, read_markers(run, 2).started
    assert stopped is not None
    assert resumed is not None
    assert 3 <= stopped.step == resumed.resumed_from_step < NUM_STEPS
    assert read_record(run.finished(2), Finished) is not None
    assert resumed.world_size == 4
    expected = losses(alone)
    assert len(expected) == NUM_STEPS
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    assert held_out_loss(run) == pytest.approx(held_out_loss(alone), rel=1e-5)


@pytest.mark.demo
def test_the_demo_model_trains_on_two_nodes(bed: Bed, tmp_path: Path) -> None:
    short = ("train.max_steps=2", "train.global_batch=4", "train.sequence_length=64", "data.max_samples=24")
    run, job_id = queue(bed, tmp_path / "runs", "experiment=demo", *short)
    wait_until_completed(bed, run, job_id)
    finished = read_record(run.finished(1), Finished)
    assert finished is not None
    assert finished.num_steps == len(losses(run)) == 2
    assert finished.eval_loss_before is not None
    assert finished.eval_loss_after is not None
    assert finished.eval_loss_after < finished.eval_loss_before
    assert {path.name for path in run.root.glob("attempts/1/measured-rank-*.json")} == {
        f"measured-rank-{rank}.json" for rank in range(4)
    }
