"""The disk with the run folder fills up: the job ends as failed, and goes on from what was complete before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.records import Finished, Started, TrainMetrics, read_record
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.processes import wait_until
from slurm.bed.settings import HEAD
from tests.slurm.harness import job_fields, wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, without_torchrun, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

FITLAUNCH = str(Path(sys.executable).parent / "fitlaunch")
NUM_STEPS = 80
STUB = {"STUB_STEPS": str(NUM_STEPS), "STUB_STEP_S": "0.1", "STUB_SAVE_EVERY": "10"}
DISK_BYTES = 2 << 20


def on_small_disk(bed: Bed, run: RunFolder) -> RunFolder:
    """Move a run folder to a small disk at the same path, which is seen from inside the bed only; the way to it."""
    bed.must(HEAD, ("cp", "-a", str(run.root), "/run/kept"))
    bed.small_disk(run.root.parent, DISK_BYTES)
    bed.must(HEAD, ("cp", "-a", "/run/kept", str(run.root)))
    return RunFolder(bed.path_inside(HEAD, run.root))


def steps_of(run: RunFolder, attempt: int) -> list[TrainMetrics]:
    return [each for each in read_metrics(run.metrics) if each.attempt == attempt]


def test_a_disk_that_fills_while_it_trains(bed: Bed, tmp_path: Path) -> None:
    launch = without_torchrun(slurm_launch(tmp_path / "runs", run_id="full", nodes=2, stub=STUB))
    run = on_small_disk(bed, write(launch))
    outside = RunFolder(Path(launch.run_dir))
    assert submit(bed, outside).returncode == 0
    job_id = submission(run).job_id
    assert job_id is not None
    assert wait_until(lambda: len(steps_of(run, 1)) > 12, timeout_s=60)
    filler = outside.root.parent / "filler"
    bed.on(HEAD, ("dd", "if=/dev/zero", f"of={filler}", "bs=4096"))
    assert wait_for_state(bed, job_id, timeout_s=90) == "FAILED"
    assert job_fields(bed, job_id)["Restarts"] == "0"
    assert not run.finished(1).exists()
    where = ("full", "--runs-dir", str(outside.root.parent))
    said = bed.login((FITLAUNCH, "status", *where), env={"COLUMNS": "200"}).stderr
    status = [" ".join(line.split()) for line in said.splitlines()]
    assert "kind disk full" in status
    assert "status failed: nothing could be written any more: the disk with the run folder is full" in status
    bed.must(HEAD, ("rm", str(filler)))
    resumed_by_user = bed.login((FITLAUNCH, "resume", *where))
    assert resumed_by_user.returncode == 0, resumed_by_user.stderr
    job_id = submission(run).job_id
    assert job_id is not None
    assert wait_for_state(bed, job_id, timeout_s=90) == "COMPLETED"
    last = max(int(path.name) for path in (run.root / "attempts").iterdir())
    resumed = read_record(run.started(last), Started)
    assert resumed is not None
    assert resumed.resumed_from_step is not None
    assert 10 <= resumed.resumed_from_step <= steps_of(run, 1)[-1].step
    assert [each.step for each in steps_of(run, last)] == list(range(resumed.resumed_from_step + 1, NUM_STEPS + 1))
    assert read_record(run.finished(last), Finished) is not None
    bed.remove_disk(HEAD, outside.root.parent)
