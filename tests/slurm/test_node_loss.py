"""Nodes that are lost to Slurm while their ranks live on: these do no harm to the attempt that goes on elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.records import (
    AttemptStart,
    Manifest,
    NodeEnd,
    Started,
    TrainMetrics,
    read_record,
)
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.processes import wait_until
from tests.slurm.harness import NODE_LOSS_S, job_fields, mend, wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, without_torchrun, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

SAVE_EVERY = 10
STEPS = {"STUB_STEPS": "100000", "STUB_STEP_S": "0.2", "STUB_SAVE_EVERY": str(SAVE_EVERY)}


def steps_of(run: RunFolder, attempt: int) -> list[TrainMetrics]:
    return [each for each in read_metrics(run.metrics) if each.attempt == attempt]


def start(bed: Bed, launch: LaunchPlan) -> tuple[RunFolder, str]:
    """A run that is queued, and its job."""
    run = write(launch)
    done = submit(bed, run)
    assert done.returncode == 0, done.stderr
    job_id = submission(run).job_id
    assert job_id is not None
    return run, job_id


def wait_for_steps(bed: Bed, run: RunFolder, job_id: str, count: int = SAVE_EVERY + 5) -> None:
    """Wait until so many steps were taken in all, some of them twice."""
    assert wait_until(lambda: len(read_metrics(run.metrics)) >= count, timeout_s=90, poll_s=0.1), log(run, job_id)


def log(run: RunFolder, job_id: str) -> str:
    path = run.root / f"slurm-{job_id}.out"
    return path.read_text() if path.exists() else "no log"


def assert_went_on(run: RunFolder) -> None:
    """Attempt 2 began where attempt 1 had saved last, lost no more than that, and trains as if nothing had happened."""
    second, resumed = steps_of(run, 2), read_record(run.started(2), Started)
    assert resumed is not None
    assert resumed.resumed_from_step is not None
    assert resumed.resumed_from_step % SAVE_EVERY == 0
    assert resumed.resumed_from_step >= steps_of(run, 1)[-1].step - SAVE_EVERY
    assert [each.step - resumed.resumed_from_step for each in second] == list(range(1, len(second) + 1))
    assert [each.loss for each in second] == [1.0 / each.step for each in second]


def test_ranks_that_nobody_could_end_are_fenced_off(bed: Bed, tmp_path: Path) -> None:
    """One node loses its slurmd, another its cable: Slurm gives both up, and their ranks compute and save as before."""
    without_slurmd = slurm_launch(tmp_path, "cluster.exclude=[node2]", run_id="slurmd", nodes=1, stub=STEPS)
    without_link = slurm_launch(tmp_path, "cluster.exclude=[node1]", run_id="link", nodes=1, stub=STEPS)
    runs = [start(bed, without_torchrun(launch)) for launch in (without_slurmd, without_link)]
    for run, job_id in runs:
        wait_for_steps(bed, run, job_id)
    assert [job_fields(bed, job_id)["BatchHost"] for _, job_id in runs] == ["node1", "node2"]
    bed.kill_slurmd("node1")
    bed.cut("node2")
    for run, job_id in runs:
        assert wait_until(run.attempt_start(2).exists, timeout_s=NODE_LOSS_S, poll_s=0.1), job_fields(bed, job_id)
        assert wait_until(run.node_end(1, 0).exists, timeout_s=15), "the ranks of attempt 1 go on"
    for run, job_id in runs:
        wait_for_steps(bed, run, job_id, steps_of(run, 1)[-1].step + SAVE_EVERY)
        bed.must("head", ("scancel", job_id))
    for run, job_id in runs:
        assert wait_for_state(bed, job_id) == "CANCELLED"
        assert_went_on(run)
        assert_fenced_off(run)
    mend(bed)
    assert wait_until(lambda: bed.strangers() == (), timeout_s=NODE_LOSS_S), bed.strangers()


def assert_fenced_off(run: RunFolder) -> None:
    """From the moment that attempt 2 was accepted, attempt 1 has written no step, checkpoint or state."""
    accepted, end = read_record(run.attempt_start(2), AttemptStart), read_record(run.node_end(1, 0), NodeEnd)
    assert accepted is not None
    assert end is not None
    assert steps_of(run, 1)[-1].time_s < accepted.time_s + 1.0
    assert end.ended_at_s < accepted.time_s + 10.0
    manifests = [read_record(path, Manifest) for path in run.checkpoints.glob("checkpoint-*/manifest.json")]
    assert [manifest.attempt for manifest in manifests if manifest is not None] == [2, 2]
