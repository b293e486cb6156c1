"""One run is one job, whatever happens to those who submit it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from slurm.bed import Bed
from slurm.bed.processes import wait_until
from tests.slurm.harness import ROOT, jobs_named, queued_jobs, wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, submit_argv, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


@pytest.fixture
def waiting(bed: Bed) -> Iterator[None]:
    """Nothing starts until the test says so, so that a job too many would be seen."""
    set_partition(bed, "DOWN")
    yield
    set_partition(bed, "UP")


def set_partition(bed: Bed, state: str) -> None:
    bed.must("head", ("scontrol", "update", "PartitionName=main", f"State={state}"))


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> RunFolder:
    """A run of its own name, for Slurm remembers the jobs of other tests."""
    return write(slurm_launch(tmp_path, run_id=f"run-{abs(hash(request.node.name)) % 10**8}", nodes=1))


def sbatch_that(tmp_path: Path, *lines: str) -> Path:
    """A folder with an sbatch of our own in it."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/bash\n" + "\n".join(lines) + "\n")
    program.chmod(0o755)
    return program.parent


def assert_one_job_runs_once(bed: Bed, run: RunFolder) -> None:
    """Let whatever is queued start; in the end there was one job, and one attempt."""
    (job_id,) = jobs_named(bed, f"fitlaunch-{run.root.name}")
    assert submission(run).job_id == job_id
    set_partition(bed, "UP")
    wait_for_state(bed, job_id)
    assert sorted(path.name for path in (run.root / "attempts").iterdir()) == ["1"]
    assert run.job_claim(submission(run).number).read_text() == f"{job_id}\n"


def test_submitted_twice_one_after_the_other(bed: Bed, waiting: None, run: RunFolder) -> None:
    first, second = submit(bed, run), submit(bed, run)
    job_id = submission(run).job_id
    assert (first.stdout, second.stdout) == (f"new 1 {job_id}\n", f"found 1 {job_id}\n")
    assert_one_job_runs_once(bed, run)


def test_submitted_twice_at_once(bed: Bed, waiting: None, run: RunFolder) -> None:
    clients = [
        subprocess.Popen(bed.command("head", submit_argv(run), cwd=ROOT), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(client.communicate(timeout=60)[0] for client in clients)
    assert sorted(client.returncode for client in clients) in ([0, 0], [0, 4])
    assert said in (["", f"new 1 {submission(run).job_id}\n"], [f"found 1 {submission(run).job_id}\n", said[1]])
    assert_one_job_runs_once(bed, run)


def test_the_controller_hangs_while_it_is_submitted(bed: Bed, waiting: None, run: RunFolder, tmp_path: Path) -> None:
    """The client gives up and is killed; the controller has taken the job all the same."""
    hanging = sbatch_that(tmp_path, "pkill -STOP -x slurmctld", 'exec /usr/bin/sbatch "$@"')
    silent = submit(bed, run, sbatch=hanging, timeout_s=3.0)
    assert silent.returncode == 4
    assert "may be queued all the same" in silent.stderr
    assert submission(run).job_id is None
    bed.wake_controller()
    assert wait_until(lambda: jobs_named(bed, f"fitlaunch-{run.root.name}") != [], timeout_s=20)
    (job_id,) = jobs_named(bed, f"fitlaunch-{run.root.name}")
    assert submit(bed, run).stdout == f"found 1 {job_id}\n"
    assert_one_job_runs_once(bed, run)


def test_the_client_is_killed_after_sbatch_was_heard(bed: Bed, waiting: None, run: RunFolder, tmp_path: Path) -> None:
    deadly = sbatch_that(tmp_path, '/usr/bin/sbatch "$@" > /dev/null', "kill -KILL $PPID")
    assert submit(bed, run, sbatch=deadly).returncode in (-9, 137)
    assert submission(run).job_id is None
    (job_id,) = jobs_named(bed, f"fitlaunch-{run.root.name}")
    assert submit(bed, run).stdout == f"found 1 {job_id}\n"
    assert_one_job_runs_once(bed, run)


def test_the_client_is_killed_before_sbatch_was_heard(bed: Bed, waiting: None, run: RunFolder, tmp_path: Path) -> None:
    deadly = sbatch_that(tmp_path, "kill -KILL $PPID")
    assert submit(bed, run, sbatch=deadly).returncode in (-9, 137)
    assert submission(run).job_id is None
    assert jobs_named(bed, f"fitlaunch-{run.root.name}") == []
    assert submit(bed, run).stdout == f"new 1 {submission(run).job_id}\n"
    assert_one_job_runs_once(bed, run)


def test_of_two_jobs_of_one_submission_one_runs(bed: Bed, waiting: None, run: RunFolder) -> None:
    """Somebody queues the script by hand besides, or a request is taken twice."""
    by_hand = bed.must("head", ("sbatch", "--parsable", str(run.script), "1")).strip()
    second = bed.must("head", ("sbatch", "--parsable", str(run.script), "1")).strip()
    set_partition(bed, "UP")
    states = {wait_for_state(bed, job_id) for job_id in (by_hand, second)}
    assert "COMPLETED" in states  # the one that had nothing to do
    assert sorted(path.name for path in (run.root / "attempts").iterdir()) == ["1"]
    owner = run.job_claim(1).read_text().strip()
    other = second if owner == by_hand else by_hand
    log = (run.root / f"slurm-{other}.out").read_text()
    assert log == f"fitlaunch: submission 1 runs as job {owner}: job {other} has nothing to do\n"


def test_a_refusal_leaves_nothing_to_look_for(bed: Bed, waiting: None, tmp_path: Path) -> None:
    run = write(slurm_launch(tmp_path, "cluster.constraint=nosuchfeature", nodes=1))
    done = submit(bed, run)
    assert done.returncode == 4
    assert done.stderr == (
        "Slurm refuses run run: sbatch: error: Batch job submission failed: Invalid feature specification: "
        "no node has the features of cluster.constraint\n"
    )
    assert not run.submission.exists()
    assert queued_jobs(bed) == []


def test_a_plan_that_changed_is_not_submitted(bed: Bed, waiting: None, run: RunFolder) -> None:
    run.script.write_text(run.script.read_text() + "# a line\n")
    done = submit(bed, run)
    assert done.returncode == 4
    assert done.stderr.startswith("job.sh in ")
    assert "changed after it was rendered" in done.stderr
    assert queued_jobs(bed) == []
