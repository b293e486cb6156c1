"""Sweeps on this host, with jobs that train nothing: side by side, failures, stops, retries, and searches."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.runs.layout import RunFolder
from launcher.runs.processes import end_processes, processes_of_run
from launcher.runs.records import Finished, read_record
from launcher.runs.sweeps import SweepFolder, list_sweeps, read_sweep
from tests.faults.harness import wait_for
from tests.report_fixtures import TINY_CONFIG

ROOT = Path(__file__).parents[2]
RATES = "train.learning_rate=1e-4,1e-3,1e-2"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


class Launcher:
    """The launcher in a folder of its own, for cells of one CPU rank on a model that fits anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = folder / "model"
        model.mkdir()
        config = TINY_CONFIG | {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
        (model / "config.json").write_text(json.dumps(config))
        self.job = ("model=path", f"model.path={model}", "device=cpu", "gpus=1", "tracker=none")
        self.job += ("train.sequence_length=64",)

    def start(self, *arguments: str, job: str = "") -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": str(ROOT), "SWEEP_JOB": job, "CUDA_VISIBLE_DEVICES": ""}
        command = (sys.executable, "-m", "tests.sweep_drive", *arguments)
        return subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, job: str = "") -> tuple[int, str]:
        """Exit code, and what was said on stderr."""
        process = self.start(*arguments, job=job)
        try:
            _, said = process.communicate(timeout=90)
        finally:
            process.kill()
        return process.returncode, said

    def launch(self, *overrides: str, job: str = "") -> tuple[int, str]:
        return self.run("launch", "-m", *self.job, *overrides, job=job)

    def start_launch(self, *overrides: str, job: str) -> subprocess.Popen[str]:
        return self.start("launch", "-m", *self.job, *overrides, job=job)

    @property
    def sweep(self) -> SweepFolder:
        (folder,) = list_sweeps(self.folder / "runs")
        return folder

    def runs(self) -> list[RunFolder]:
        return [self.sweep.run(cell) for cell in read_sweep(self.sweep).cells]

    def statuses(self) -> list[str]:
        process = self.start("fitlaunch", "sweep", "status", "--json")
        told: dict[str, Any] = json.loads(process.communicate(timeout=60)[0])
        return [cell["status"] for cell in told["cells"]]

    def times(self) -> list[tuple[float, float]]:
        """When each cell began and ended."""
        return [times_of(run) for run in self.runs()]


def times_of(run: RunFolder) -> tuple[float, float]:
    begun = float((run.node(1, 0) / "logs" / "stub_rank0.log").read_text().split()[0])
    finished = read_record(run.finished(1), Finished)
    assert finished is not None
    return begun, finished.time_s


def most_at_a_time(times: list[tuple[float, float]]) -> int:
    return max(sum(begun <= moment < ended for begun, ended in times) for moment, _ in times)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """Nothing of a sweep is left when its test ends."""
    launcher = Launcher(tmp_path)
    yield launcher
    runs = [path.parent for path in (tmp_path / "runs").glob("*/launch.json")]
    left = [process for run in runs for process in processes_of_run(str(run))]
    end_processes(lambda: tuple(left), term_grace_s=0.0)
    assert left == []
    assert list((tmp_path / "runs").rglob(".lock")) == []


def test_cells_run_side_by_side_and_one_that_fails_stops_no_other(launcher: Launcher) -> None:
    code, said = launcher.launch(RATES, "train.seed=1,2", "sweep.parallel=2", job="seconds=2 fail=0.001")
    assert code == 5, said
    assert said.strip().splitlines()[-1] == "error: 2 of 6 jobs failed"
    assert re.search(r"^ +2  failed after [\d.]+ s: .*the cell was told to fail$", said, re.MULTILINE)
    assert launcher.statuses() == ["finished"] * 2 + ["failed"] * 2 + ["finished"] * 2
    finished = [times_of(run) for run in launcher.runs() if run.finished(1).exists()]
    assert most_at_a_time(finished) == 2

    code, said = launcher.run("fitlaunch", "sweep", "retry")
    assert code == 0, said
    assert launcher.statuses() == ["finished"] * 6
    assert [len(list((run.root / "attempts").iterdir())) for run in launcher.runs()] == [1, 1, 2, 2, 1, 1]
    code, said = launcher.run("fitlaunch", "sweep", "retry")
    assert (code, "has no cell that failed" in said) == (2, True)


def test_no_more_run_at_a_time_than_the_cores_allow(launcher: Launcher) -> None:
    cores = len(os.sched_getaffinity(0))
    code, said = launcher.launch("gpus=2", "train.seed=1,2,3", job="seconds=0.5")
    assert code == 0, said
    assert most_at_a_time(launcher.times()) == max(1, min(3, cores // 2))


def test_a_stop_lets_those_that_run_save_and_starts_no_more(launcher: Launcher) -> None:
    process = launcher.start_launch(RATES, "sweep.parallel=2", job="seconds=60")
    with ending(process):
        wait_for(lambda: sum(run.started(1).exists() for run in folders(launcher)) == 2, "two cells")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert launcher.statuses() == ["stopped", "stopped", "not started"]
    assert "not started: stopped" in said

    code, said = launcher.run("fitlaunch", "sweep", "retry", "--stopped")
    assert code == 0, said
    assert launcher.statuses() == ["finished"] * 3


def test_a_cancel_from_elsewhere_ends_all_and_starts_no_more(launcher: Launcher) -> None:
    process = launcher.start_launch(RATES, "sweep.parallel=1", job="seconds=60")
    with ending(process):
        wait_for(lambda: any(run.started(1).exists() for run in folders(launcher)), "a cell")
        code, told = launcher.run("fitlaunch", "sweep", "cancel")
        _, said = process.communicate(timeout=60)
    assert code == 0, told
    assert process.returncode == 130, said
    assert launcher.statuses() == ["stopped", "not started", "not started"]
    code, said = launcher.run("fitlaunch", "sweep", "cancel")
    assert (code, "has no cell that is queued or running" in said) == (2, True)


def test_a_search_goes_by_the_losses(launcher: Launcher) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    seed = ("hydra.sweeper.sampler.seed=1", "train.learning_rate=tag(log,interval(1e-5,1e-1))")
    code, said = launcher.launch(*search, *seed)
    assert code == 0, said
    losses = []
    for run in launcher.runs():
        finished = read_record(run.finished(1), Finished)
        assert finished is not None
        losses.append(finished.eval_loss_after)
    assert len(losses) == 4
    found = yaml.safe_load(launcher.sweep.search.read_text())
    assert found["best_value"] == min(losses)
    assert "What the search found" in said


def test_a_search_bears_the_failures_that_it_is_told_to_bear(launcher: Launcher) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=3", RATES)
    options = ("hydra.sweeper.sampler.seed=1", "hydra.sweeper.max_failure_rate=0.5")  # it tries each of them once
    code, said = launcher.launch(*search, *options, job="fail=0.001")
    assert code == 0, said
    assert sorted(launcher.statuses()) == ["failed", "finished", "finished"]
    assert yaml.safe_load(launcher.sweep.search.read_text())["best_value"] == 2.0


def folders(launcher: Launcher) -> list[RunFolder]:
    """The runs as far as they are there."""
    return [RunFolder(path.parent) for path in (launcher.folder / "runs").glob("*/launch.json")]


@contextlib.contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever the test does, the process does not outlive it."""
    try:
        yield
    finally:
        process.kill()
        process.wait(timeout=10)
