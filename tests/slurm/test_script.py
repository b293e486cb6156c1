"""What Slurm makes of our scripts: every option as it was meant, and an environment that is the job's own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.state import read_state
from slurm.bed import Bed
from slurm.bed.packages import SEARCH
from slurm.bed.settings import HEAD
from tests.slurm.harness import ROOT, job_fields, queued_jobs, wait_for_state
from tests.slurm.runs import slurm_launch, submission, submit, submit_argv, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

SECRET = "correct-horse-battery-staple"
# In the place of torchrun: writes down the environment that its ranks would have.
DUMP = "import json, os; json.dump(dict(os.environ), open('environment.json', 'w'))"


def job_of(bed: Bed, run: RunFolder, env: dict[str, str] | None = None) -> str:
    done = bed.login(submit_argv(run), cwd=ROOT, env={"PATH": SEARCH} | (env or {}))
    assert done.returncode == 0, done.stderr
    job_id = submission(run).job_id
    assert job_id is not None
    return job_id


def test_slurm_understands_every_option_as_it_was_meant(bed: Bed, tmp_path: Path) -> None:
    folder = tmp_path / "a,b+c=d@e~f"
    launch = slurm_launch(
        folder,
        "device=h100-80g",
        "gpus=4",
        "cluster.partition='high,main'",
        "cluster.nodelist=['node[1-2]']",
        "cluster.exclude=[node3]",
        "cluster.cpus_per_node=6",
        "cluster.mem=3G",
        "cluster.time='0-00:45:00'",
        "cluster.requeue=false",
        run_id="options",
        nodes=2,
    )
    bed.must(HEAD, ("scontrol", "update", "PartitionName=main", "State=DOWN"))
    bed.must(HEAD, ("scontrol", "update", "PartitionName=high", "State=DOWN"))
    try:
        run = write(launch)
        job_id = job_of(bed, run)
        fields = job_fields(bed, job_id)
        bed.must(HEAD, ("scancel", job_id))
    finally:
        bed.must(HEAD, ("scontrol", "update", "PartitionName=main", "State=UP"))
        bed.must(HEAD, ("scontrol", "update", "PartitionName=high", "State=UP"))
    expected = {
        "JobName": "fitlaunch-options",
        "Partition": "high,main",
        "ReqNodeList": "node[1-2]",
        "ExcNodeList": "node3",
        "NumNodes": "2-2",
        "CPUs/Task": "6",
        "MinMemoryNode": "3G",
        "TresPerNode": "gres:gpu:4",
        "TimeLimit": "00:45:00",
        "Requeue": "0",
        "WorkDir": str(run.root),
        "StdOut": f"{run.root}/slurm-{job_id}.out",
        "Command": f"{run.script} 1",
    }
    assert {name: fields.get(name) for name in expected} == expected


def test_a_job_takes_along_what_is_named_and_no_secret(bed: Bed, tmp_path: Path) -> None:
    """A value may hold what a shell, sbatch or --export would misread; nothing that is not named is stored."""
    canary = tmp_path / "canary"
    odd = f"a,b 'c' \"d\" $(touch {canary}) `touch {canary}`; touch {canary} #%j \\ \n second line"
    launch = slurm_launch(tmp_path, "cluster.environment=[MY_FLAG]", "cluster.setup=['export FROM_SITE=1']", nodes=1)
    run = write(dataclasses.replace(launch, argv=(sys.executable, "-c", DUMP)))
    given = {
        "MY_FLAG": odd,
        "WANDB_API_KEY": SECRET,
        "HF_TOKEN": SECRET,
        "HARMLESS": SECRET,
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_EXPORT": "NONE",
    }
    job_id = job_of(bed, run, given)
    wait_for_state(bed, job_id)
    (dumped,) = run.root.glob("attempts/1/node-0/environment.json")
    environment = json.loads(dumped.read_text())
    assert environment["MY_FLAG"] == odd
    assert environment["FROM_SITE"] == "1"
    assert environment["FITLAUNCH_JOB_ID"] == job_id
    assert not {"WANDB_API_KEY", "HF_TOKEN", "HARMLESS", "SBATCH_PARTITION", "SBATCH_EXPORT"} & set(environment)
    assert not canary.exists()
    assert stored_in(bed, SECRET, run) == []
    assert "/run/slurmctld" in stored_in(bed, "second line", run)[0]  # where a secret would have been


def stored_in(bed: Bed, text: str, run: RunFolder) -> list[str]:
    """The files of the controller and of the run that hold a text."""
    search = ("grep", "--recursive", "--files-with-matches", text, "/run/slurmctld", str(run.root))
    return bed.login(search).stdout.splitlines()


def test_a_run_folder_that_is_gone_before_the_job_starts(bed: Bed, tmp_path: Path) -> None:
    """Slurm can write no log then: the job fails, and nothing comes into being where the folder was."""
    run = write(slurm_launch(tmp_path, run_id="gone", nodes=1))
    bed.must(HEAD, ("scontrol", "update", "PartitionName=main", "State=DOWN"))
    try:
        job_id = job_of(bed, run)
        shutil.rmtree(run.root)
    finally:
        bed.must(HEAD, ("scontrol", "update", "PartitionName=main", "State=UP"))
    assert wait_for_state(bed, job_id) == "FAILED"
    assert not run.root.exists()
    done = submit(bed, run)
    assert done.returncode == 4
    assert "is no run folder that can be started" in done.stderr
    assert queued_jobs(bed) == []


def test_data_that_one_node_does_not_see(bed: Bed, tmp_path: Path) -> None:
    """The nodes say so before any rank is started, and which of them it is."""
    model, data = tmp_path / "model", tmp_path / "data"
    for folder in (model, data):
        folder.mkdir()
    (data / "rows.json").write_text(json.dumps([{"instruction": "a", "output": "b"}] * 64))
    launch = slurm_launch(tmp_path / "runs", "data=alpaca", f"data.path={data}/rows.json", run_id="unseen", nodes=2)
    bed.own_disk("node2", data)
    try:
        run = write(launch)
        job_id = job_of(bed, run)
        assert wait_for_state(bed, job_id) == "FAILED"
    finally:
        bed.remove_disk("node2", data)
    log = (run.root / f"slurm-{job_id}.out").read_text()
    assert f"fitlaunch: on node2 data.path={data}/rows.json cannot be read" in log.splitlines()
    assert not list(run.root.glob("attempts/1/node-*/logs/**/std*.log"))  # no rank was started
    state = read_state(run)
    assert state is not None
    print(state)
    assert f"data.path={data}/rows.json cannot be read" in state.reason
