"""The console script as a whole process: from any directory, with truthful exit codes and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.records import Status, append_record
from launcher.runs.state import write_state
from launcher.targets.folder import write_run_folder
from tests.launching import make_launch
from tests.markers import stepped

FITLAUNCH = Path(sys.executable).parent / "fitlaunch"


def fitlaunch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, env = (str(FITLAUNCH), *arguments), os.environ | {"TZ": "UTC", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def rendered(tmp_path: Path) -> RunFolder:
    """A run that was rendered and never started."""
    return write_run_folder(make_launch(tmp_path / "runs"), now_s=1_000_000_000.0)


def test_help_from_any_directory(tmp_path: Path) -> None:
    done = fitlaunch(tmp_path, "--help")
    assert done.returncode == 0
    words = (
        "ls", "status", "logs", "cancel", "resume", "report", "merge", "generate", "evaluate", "calibrate", "launch",
        "doctor",
    )  # fmt: skip
    assert all(f"\n  {word} " in done.stdout for word in words)


def test_a_misspelt_command_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = fitlaunch(tmp_path, "statsu")
    assert (done.returncode, done.stderr) == (2, "Error: statsu is not a command: did you mean status?\n")


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "resume", "report", "merge", "generate", "evaluate"])
def test_no_such_run_ends_with_2(tmp_path: Path, command: str) -> None:
    done = fitlaunch(tmp_path, command, "nope")
    assert done.returncode == 2
    assert "run=nope" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_have_no_short_forms_of_long_names(tmp_path: Path) -> None:
    assert fitlaunch(tmp_path, "generate", "last", "--max-new", "3").returncode == 2


def test_launch_from_another_directory(tmp_path: Path) -> None:
    done = fitlaunch(tmp_path, "launch", "mode=plan", "gpus=8", "shard=zero3", "model=llama3-8b", "device=rtx4090")
    assert done.returncode == 0
    assert done.stderr.startswith("llama3-8b, 8.03B parameters")
    assert fitlaunch(tmp_path, "launch", "gpus=x").returncode == 2


def test_ls_and_status_of_a_rendered_run(rendered: RunFolder) -> None:
    cwd = rendered.root.parent.parent
    listed = fitlaunch(cwd, "ls").stderr.splitlines()
    assert listed[1].split() == [rendered.root.name, "2001-09-09", "01:46", "rendered", "-"]
    told = fitlaunch(cwd, "status", "last").stderr.splitlines()
    assert told[0] == rendered.root.name
    assert told[1].split() == ["status", "rendered"]


def test_status_of_a_failed_run_says_why_and_how_far(rendered: RunFolder) -> None:
    rendered.attempt(1).mkdir(parents=True)
    write_state(rendered, Status.FAILED, attempt=1, exit_code=5, reason="rank 1 ran out of memory")
    append_record(rendered.metrics, stepped(1, 3, 9, loss=2.5))
    told = fitlaunch(rendered.root.parent.parent, "status", rendered.root.name[:12]).stderr
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "status failed: rank 1 ran out of memory" in lines
    assert "step 3 of 9, loss 2.5000" in lines


def test_logs_prints_what_the_rank_wrote(rendered: RunFolder) -> None:
    logs = rendered.logs(1) / "x" / "attempt_0" / "1"
    logs.mkdir(parents=True)
    (logs / "stderr.log").write_text("one\ntwo\n")
    cwd = rendered.root.parent.parent
    assert fitlaunch(cwd, "logs", "last", "--rank", "1").stdout == "one\ntwo\n"
    missing = fitlaunch(cwd, "logs", "last", "--rank", "7")
    assert missing.returncode == 2
    assert "--rank=7" in missing.stderr


def test_merge_of_a_run_without_result_says_so(rendered: RunFolder) -> None:
    done = fitlaunch(rendered.root.parent.parent, "merge", "last")
    assert done.returncode == 2
    assert "no complete result" in done.stderr


def test_a_folder_named_jobs_is_not_taken_for_ours(rendered: RunFolder) -> None:
    cwd = rendered.root.parent.parent
    (cwd / "jobs").mkdir()
    (cwd / "jobs" / "__init__.py").write_text("raise SystemExit(99)\n")
    assert fitlaunch(cwd, "merge", "last").returncode == 2


def test_the_help_takes_no_heavy_imports() -> None:
    code = "import sys, launcher.cli; print('rich' in sys.modules, 'hydra' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "False False False\n"


def test_calibrate_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    done = fitlaunch(tmp_path, "calibrate", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "fitlaunch calibrate --cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_calibrate_takes_a_sharding_for_cpu_ranks_only(tmp_path: Path) -> None:
    done = fitlaunch(tmp_path, "calibrate", "--shard", "ddp")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "Error: --shard has no effect without --cpu"


def test_ls_as_json(rendered: RunFolder) -> None:
    listed = json.loads(fitlaunch(rendered.root.parent.parent, "ls", "--json").stdout)
    assert [(run["run_id"], run["plan_errors"]) for run in listed["runs"]] == [(rendered.root.name, None)]
    assert listed["plan_errors"] == {"allocated": None, "reserved": None, "process": None}
