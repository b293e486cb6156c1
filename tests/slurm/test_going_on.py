"""Jobs that are cut off and go on, at their time limit or by a preemption; and one that its user cancelled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.runs.attempts import accepted_attempts
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers
from launcher.runs.records import Finished, Stopped, read_record
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.processes import wait_until
from tests.slurm.harness import job_fields, submit, wait_for_state
from tests.slurm.runs import slurm_launch, submission, write
from tests.slurm.runs import submit as submit_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

NUM_STEPS = 45
STEP_S = "0.3"
# Slurm 22.05 looks at time limits every 30 s, and warns whoever would be late at the next look: a job of a minute with
# a lead of 20 s is warned between 10 and 40 s after its start. Only the first start is too slow to have finished then.
LEAD_S = 20
SLOW_AT_FIRST = {"STUB_MODE": "slow", "STUB_RANK": "0", "STUB_ATTEMPT": "1", "STUB_STEP_S": "0.05"}
GONE_ON_S = 180.0


def start(bed: Bed, tmp_path: Path, name: str, *overrides: str, **stub: str) -> tuple[RunFolder, str]:
    """A run on two nodes, in its first steps; and its job."""
    ranks = {"STUB_STEPS": str(NUM_STEPS), "STUB_STEP_S": STEP_S} | stub
    run = write(slurm_launch(tmp_path, *overrides, run_id=name, nodes=2, stub=ranks))
    done = submit_run(bed, run)
    assert done.returncode == 0, done.stderr
    job_id = submission(run).job_id
    assert job_id is not None
    if not wait_until(lambda: num_steps(run) >= 3, timeout_s=60, poll_s=0.1):
        raise AssertionError(f"no step: {job_fields(bed, job_id)}\n{log(run, job_id)}")
    return run, job_id


def num_steps(run: RunFolder) -> int:
    return len(read_metrics(run.metrics))


def log(run: RunFolder, job_id: str) -> str:
    path = run.root / f"slurm-{job_id}.out"
    return path.read_text() if path.exists() else "no log"


def wait_until_finished(bed: Bed, run: RunFolder, job_id: str) -> int:
    """Wait until the job is done; the number of the attempt that finished."""
    state = wait_for_state(bed, job_id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=GONE_ON_S)
    assert state == "COMPLETED", log(run, job_id)
    last = max(start.attempt for start in accepted_attempts(run, submission=1))
    assert read_record(run.finished(last), Finished) is not None
    return last


def assert_as_if_never_cut_off(run: RunFolder) -> None:
    """Every step was taken once, in order, with the loss that it has in a run that nobody interrupts."""
    steps = [(metrics.step, metrics.loss) for metrics in read_metrics(run.metrics)]
    assert steps == [(step, 1.0 / step) for step in range(1, NUM_STEPS + 1)]


def stopped(run: RunFolder, attempt: int) -> Stopped:
    found = read_markers(run, attempt).stopped
    assert found is not None
    return found


def test_at_its_time_limit_a_job_saves_and_goes_on(bed: Bed, tmp_path: Path) -> None:
    limits = ("cluster.partition=short", "cluster.time=1", f"cluster.lead_s={LEAD_S}")
    run, job_id = start(bed, tmp_path, "limit", *limits, **SLOW_AT_FIRST)
    last = wait_until_finished(bed, run, job_id)
    assert last >= 2
    assert_as_if_never_cut_off(run)
    for attempt in range(1, last):
        assert stopped(run, attempt).cause == "time limit"
        assert run.requeue(attempt).exists()
    starts = accepted_attempts(run, submission=1)
    assert [(each.attempt, each.job_id, each.restart_count) for each in starts] == [
        (number, job_id, number - 1) for number in range(1, last + 1)
    ]
    assert f"fitlaunch: job {job_id}, attempt {last} on " in log(run, job_id)


def test_a_preempted_job_saves_and_goes_on(bed: Bed, tmp_path: Path) -> None:
    run, job_id = start(bed, tmp_path, "preempted")
    other = submit(bed, "#!/bin/bash\nsleep 2\n", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null")
    assert wait_for_state(bed, other, timeout_s=90) == "COMPLETED"
    assert wait_until_finished(bed, run, job_id) == 2
    assert_as_if_never_cut_off(run)
    assert stopped(run, 1).cause in ("TERM", "SIGTERM")
    assert stopped(run, 1).checkpoint is not None
    assert not run.requeue(1).exists()


def test_a_cancelled_job_saves_and_stays_cancelled(bed: Bed, tmp_path: Path) -> None:
    run, job_id = start(bed, tmp_path, "cancelled")
    bed.must("head", ("scancel", job_id))
    assert wait_for_state(bed, job_id, timeout_s=60) == "CANCELLED"
    assert stopped(run, 1).checkpoint is not None
    time.sleep(8)  # a requeue would be seen after five seconds
    assert job_fields(bed, job_id)["JobState"] == "CANCELLED"
    assert job_fields(bed, job_id)["Restarts"] == "0"
    assert [each.attempt for each in accepted_attempts(run, submission=1)] == [1]
