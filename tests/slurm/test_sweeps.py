"""Sweeps on a real Slurm: one array, one sbatch; what failed is sent again, alone; and nobody sends anything twice."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.runs.layout import RunFolder
from launcher.runs.logs import job_logs
from launcher.runs.records import Submission, read_record
from launcher.runs.sweeps import list_sweeps, read_arrays, read_sweep
from slurm.bed import Bed
from slurm.bed.processes import wait_until
from tests.slurm.harness import ROOT, queued_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

JOB = ("cluster=slurm", "device=cpu", "gpus=1", "cluster.time=10", "cluster.lead_s=60", "cluster.mem=6G")
SBATCH = shutil.which("sbatch") or "sbatch"
COUNTING = """#!/bin/bash
printf '%s\\n' "$*" >> {calls}
{then}
"""


class Client:
    """The launcher on the login node, in a folder of its own, with an sbatch that counts its calls."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self.bed = bed
        self.folder = folder
        self.calls_file = folder / "calls"
        self.sbatch_does(f'exec {SBATCH} "$@"')

    def sbatch_does(self, then: str) -> None:
        """What sbatch does once it has counted its call."""
        program = self.folder / "bin" / "sbatch"
        program.parent.mkdir(exist_ok=True)
        program.write_text(COUNTING.format(calls=shlex.quote(str(self.calls_file)), then=then))
        program.chmod(0o755)

    def command(self, *arguments: str, job: str = "") -> tuple[str, ...]:
        words = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SWEEP_JOB": job}
        assigned = tuple(f"{name}={value}" for name, value in words.items())
        return ("env", *assigned, sys.executable, "-m", "tests.sweep_drive", *arguments)

    def run(self, *arguments: str, job: str = "", timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        return self.bed.login(self.command(*arguments, job=job), cwd=self.folder, timeout_s=timeout_s)

    def launch(self, *overrides: str, job: str = "") -> subprocess.CompletedProcess[str]:
        return self.run("launch", "-m", *JOB, "tracker=none", *overrides, job=job)

    def sweep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("fitlaunch", "sweep", *arguments)

    def cells(self) -> list[dict[str, Any]]:
        """How every cell stands, as the command tells it."""
        done = self.sweep("status", "--json")
        assert done.returncode == 0, done.stderr
        cells: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
        return cells

    def statuses(self) -> list[str]:
        return [cell["status"] for cell in self.cells()]

    def calls(self) -> list[str]:
        """The arguments of each call of sbatch."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def arrays(self) -> list[tuple[int, ...]]:
        """The cells of each array that was submitted."""
        (folder,) = list_sweeps(self.folder / "runs")
        assert all(array.job_id is not None for array in read_arrays(folder))
        return [array.cells for array in read_arrays(folder)]

    def wait_for(self, *statuses: str) -> None:
        """Wait until the cells stand so."""
        assert wait_until(lambda: self.statuses() == list(statuses), timeout_s=90.0, poll_s=1.0), self.cells()


@pytest.fixture
def client(bed: Bed, tmp_path: Path) -> Client:
    return Client(bed, tmp_path)


@pytest.fixture
def drained(bed: Bed) -> Iterator[None]:
    """Nothing starts, and so a job too many would be seen."""
    bed.must("head", ("scontrol", "update", "NodeName=ALL", "State=DRAIN", "Reason=test"))
    yield
    bed.must("head", ("scontrol", "update", "NodeName=ALL", "State=RESUME"))


def test_64_cells_are_one_array_sent_by_one_sbatch(client: Client, drained: None) -> None:
    rates = ",".join(f"{number}e-5" for number in range(1, 17))
    sent = client.launch(f"train.learning_rate={rates}", "method=lora,full", "train.seed=1,2", "cluster.max_parallel=8")
    assert sent.returncode == 0, sent.stderr
    (call,) = client.calls()
    assert call.split()[0] == "--parsable"
    (folder,) = list_sweeps(client.folder / "runs")
    assert "#SBATCH --array=0-63%8\n" in folder.script(1).read_text()
    assert client.arrays() == [tuple(range(64))]
    (array,) = read_arrays(folder)
    assert len(queued_jobs(client.bed)) == 64
    for task, cell in enumerate(read_sweep(folder).cells):
        run = folder.run(cell)
        assert read_record(run.submission, Submission) == Submission(
            number=1,
            cluster="slurm",
            job_name=f"fitlaunch-{folder.root.name}-1",
            time_s=array.time_s,
            job_id=f"{array.job_id}_{task}",
            array_task=task,
            sweep=folder.root.name,
        )
    assert set(client.statuses()) == {"queued"}

    done = client.sweep("cancel")
    assert done.returncode == 0, done.stderr
    assert queued_jobs(client.bed) == []
    assert set(client.statuses()) == {"cancelled"}
    again = client.sweep("retry")
    assert again.returncode == 2
    assert "has no cell that failed" in again.stderr
    assert len(client.calls()) == 1


def test_what_is_too_much_for_one_array_is_sent_as_several(client: Client) -> None:
    done = client.launch("train.seed=1,2,3,4,5", "cluster.max_array_size=2", "sweep.wait=true")
    assert done.returncode == 0, done.stderr
    assert client.arrays() == [(0, 1), (2, 3), (4,)]
    assert [call.split()[0] for call in client.calls()] == ["--test-only"] * 3 + ["--parsable"] * 3
    assert client.statuses() == ["finished"] * 5


def test_failed_cells_are_sent_again_and_no_others(client: Client) -> None:
    rates = "train.learning_rate=1e-4,1e-3,1e-2"
    done = client.launch(rates, "train.seed=1,2", "sweep.wait=true", job="fail=0.001")
    assert done.returncode == 5, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: 2 of 6 jobs failed"
    cells = client.cells()
    assert [cell["status"] for cell in cells] == ["finished"] * 2 + ["failed"] * 2 + ["finished"] * 2
    assert [cell["eval_loss_after"] for cell in cells] == [2.0, 2.0, None, None, 2.0, 2.0]

    again = client.sweep("retry")
    assert again.returncode == 0, again.stderr
    client.wait_for(*["finished"] * 6)
    assert client.arrays() == [(0, 1, 2, 3, 4, 5), (2, 3)]
    assert [cell["eval_loss_after"] for cell in client.cells()] == [2.0, 2.0, 1.0, 1.0, 2.0, 2.0]
    runs = [RunFolder(client.folder / "runs" / cell["run_id"]) for cell in cells]
    assert [len(list((run.root / "attempts").iterdir())) for run in runs] == [1, 1, 2, 2, 1, 1]
    assert [call.split()[-1] for call in client.calls()] == ["1", "2"]
    assert "attempt 2 on node" in job_logs(runs[2])[-1].read_text()


def test_a_client_that_was_killed_has_sent_it_once(client: Client, drained: None) -> None:
    client.sbatch_does(f'{SBATCH} "$@"; kill -9 $PPID')
    killed = client.launch("train.seed=1,2,3")
    assert killed.returncode != 0
    (folder,) = list_sweeps(client.folder / "runs")
    assert [array.job_id for array in read_arrays(folder)] == [None]
    assert client.statuses() == ["queued"] * 3
    assert client.arrays() == [(0, 1, 2)]
    again = client.sweep("retry")
    assert again.returncode == 2
    assert len(client.calls()) == 1
    assert len(queued_jobs(client.bed)) == 3
    assert client.sweep("cancel").returncode == 0


def test_what_was_never_sent_is_sent_once_by_two_at_once(client: Client, drained: None) -> None:
    client.sbatch_does("kill -9 $PPID")
    assert client.launch("train.seed=1,2").returncode != 0
    assert client.statuses() == ["unknown"] * 2
    (folder,) = list_sweeps(client.folder / "runs")
    shutil.rmtree(folder.run(read_sweep(folder).cells[1]).root)  # as if it had been killed before it wrote that
    assert client.statuses() == ["unknown", "not started"]
    client.sbatch_does(f'exec {SBATCH} "$@"')
    command = client.command("fitlaunch", "sweep", "retry")
    both = [
        subprocess.Popen(client.bed.command("head", command, cwd=client.folder), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for each in both:
        each.communicate(timeout=60)
    codes = sorted(each.returncode for each in both)
    assert codes in ([0, 2], [0, 4])  # the other finds nothing to do, or the sweep in hand
    assert client.statuses() == ["queued"] * 2
    assert len(queued_jobs(client.bed)) == 2
    assert client.sweep("cancel").returncode == 0


def test_a_cancel_lets_cells_save_and_none_starts_again(client: Client) -> None:
    assert client.launch("train.seed=1,2,3", "cluster.max_parallel=2", job="seconds=20").returncode == 0
    client.wait_for("running", "running", "queued")
    (folder,) = list_sweeps(client.folder / "runs")
    runs = [folder.run(cell) for cell in read_sweep(folder).cells]
    assert wait_until(lambda: all(run.started(1).exists() for run in runs[:2]), timeout_s=60.0, poll_s=0.5)
    done = client.sweep("cancel")
    assert done.returncode == 0, done.stderr
    assert client.statuses() == ["cancelled"] * 3
    assert [run.stopped(1).exists() for run in runs] == [True, True, False]
    assert queued_jobs(client.bed) == []


def test_a_sweeper_that_searches_has_to_wait(client: Client) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "train.learning_rate=interval(1e-4,1e-2)")
    refused = client.launch(*search)
    assert refused.returncode == 2, refused.stderr
    assert "sweep.wait=true" in refused.stderr
    assert client.calls() == []

    done = client.launch(*search, "hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_jobs=2", "sweep.wait=true")
    assert done.returncode == 0, done.stderr
    assert client.arrays() == [(0, 1)]
    (folder,) = list_sweeps(client.folder / "runs")
    losses = [cell["eval_loss_after"] for cell in client.cells()]
    assert yaml.safe_load(folder.search.read_text())["best_value"] == min(losses)


def test_on_hosts_the_cells_run_one_after_the_other(client: Client) -> None:
    (client.folder / "hostfile").write_text("node1 slots=1\n")
    hosts = ("cluster=hosts", f"cluster.hostfile={client.folder / 'hostfile'}", "device=cpu", "tracker=none")
    refused = client.run("launch", "-m", *hosts, "train.seed=1,2", "sweep.parallel=2")
    assert refused.returncode == 2
    assert "its cells run one after the other" in refused.stderr
    done = client.run("launch", "-m", *hosts, "train.seed=1,2")
    assert done.returncode == 0, done.stderr
    assert client.statuses() == ["finished"] * 2
    (folder,) = list_sweeps(client.folder / "runs")
    first, second = (folder.run(cell) for cell in read_sweep(folder).cells)
    assert first.finished(1).stat().st_mtime < second.attempt_start(1).stat().st_mtime
