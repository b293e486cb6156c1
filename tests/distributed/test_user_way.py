"""What a user does, by the commands a user types: start, Ctrl-C, look, resume, merge, ask. Both launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.processes import processes_of_run
from launcher.runs.records import Finished, Status, Stopped, read_record
from launcher.runs.registry import list_runs
from tests.tiny import make_alpaca_file, make_tiny_model

ROOT = Path(__file__).parents[2]
FITLAUNCH = str(Path(sys.executable).parent / "fitlaunch")
ENV = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
NUM_STEPS = 60

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


def start(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    model, rows = make_tiny_model(cwd / "model"), make_alpaca_file(cwd / "rows.json", 80)
    command = (
        sys.executable, str(ROOT / "launch.py"),
        "model=path", f"model.path={model}", "data=alpaca", f"data.path={rows}",
        "gpus=2", "device=cpu", "train.global_batch=4", "train.sequence_length=64", f"train.max_steps={NUM_STEPS}",
        "train.learning_rate=5e-3", *overrides,
    )  # fmt: skip
    return subprocess.Popen(command, cwd=cwd, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True)


def fitlaunch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (FITLAUNCH, *arguments)
    return subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=200, check=False)


def wait_for_steps(cwd: Path, count: int, launcher: subprocess.Popen[str]) -> RunFolder:
    """The only run, once it has taken `count` steps."""
    end = time.monotonic() + 150
    while time.monotonic() < end:
        runs = list_runs(cwd / "runs")
        if runs:
            run = RunFolder(runs[0].run_dir)
            lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
            if sum(json.loads(line)["kind"] == "train" for line in lines) >= count:
                return run
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("no steps were taken")


def assert_nothing_left(run: RunFolder) -> None:
    assert processes_of_run(str(run.root)) == ()
    assert not [path for path in run.root.rglob(".*") if path.name not in (".lock",)]


@pytest.mark.parametrize("overrides", [("shard=ddp",), ("shard=zero2", "launcher=deepspeed")], ids=" ".join)
def test_start_stop_resume_merge_and_ask(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    launcher = start(tmp_path, *overrides)
    run = wait_for_steps(tmp_path, 3, launcher)
    launcher.send_signal(signal.SIGINT)
    _, told = launcher.communicate(timeout=150)
    assert launcher.returncode == 130, told
    assert "Traceback" not in told
    assert "fitlaunch resume" in told
    stopped = read_record(run.stopped(1), Stopped)
    assert stopped is not None
    assert 3 <= stopped.step < NUM_STEPS
    assert not run.finished(1).exists()
    assert_nothing_left(run)
    assert list_runs(tmp_path / "runs")[0].status is Status.STOPPED

    resumed = fitlaunch(tmp_path, "resume", "last")
    assert resumed.returncode == 0, resumed.stderr
    finished = read_record(run.finished(2), Finished)
    assert finished is not None
    assert finished.num_steps == NUM_STEPS
    assert finished.eval_loss_before is not None
    assert finished.eval_loss_after is not None
    assert finished.eval_loss_after < finished.eval_loss_before
    assert (run.root / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert_nothing_left(run)
    assert fitlaunch(tmp_path, "resume", "last").returncode == 2  # it is finished

    merged = fitlaunch(tmp_path, "merge", "last")
    assert merged.returncode == 0, merged.stderr
    asked = fitlaunch(tmp_path, "generate", "last", "--merged", "--json", "--max-new-tokens", "4")
    assert asked.returncode == 0, asked.stderr
    assert all(answer["result"] for answer in json.loads(asked.stdout))
    report = fitlaunch(tmp_path, "report", "last")
    assert report.returncode == 0
    assert "held-out loss" in report.stderr


def test_a_killed_launcher_leaves_nothing_running(tmp_path: Path) -> None:
    launcher = start(tmp_path, "shard=zero2", "launcher=deepspeed")
    run = wait_for_steps(tmp_path, 1, launcher)
    launcher.kill()
    launcher.communicate(timeout=30)
    end = time.monotonic() + 60
    while processes_of_run(str(run.root)) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_of_run(str(run.root)) == ()
    assert list_runs(tmp_path / "runs")[0].status is Status.FAILED
