"""A job that its user cancelled saves, and stays cancelled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.runs.attempts import accepted_attempts
from launcher.runs.markers import read_markers
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.processes import wait_until
from tests.slurm.harness import job_fields, wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def test_a_cancelled_job_saves_and_stays_cancelled(bed: Bed, tmp_path: Path) -> None:
    run = write(slurm_launch(tmp_path, nodes=2, stub={"STUB_STEPS": "45", "STUB_STEP_S": "0.3"}))
    done = submit(bed, run)
    assert done.returncode == 0, done.stderr
    job_id = submission(run).job_id
    assert job_id is not None
    started = wait_until(lambda: len(read_metrics(run.metrics)) >= 3, timeout_s=60, poll_s=0.1)
    assert started, job_fields(bed, job_id)
    bed.must("head", ("scancel", job_id))
    assert wait_for_state(bed, job_id, timeout_s=60) == "CANCELLED"
    stopped = read_markers(run, 1).stopped
    assert stopped is not None
    assert stopped.checkpoint is not None
    time.sleep(8)  # a requeue would be seen after five seconds
    assert job_fields(bed, job_id)["JobState"] == "CANCELLED"
    assert job_fields(bed, job_id)["Restarts"] == "0"
    assert [each.attempt for each in accepted_attempts(run, submission=1)] == [1]
