"""A multirun with real ranks: all cells are planned first, a cell that fails stops no other, the exit code tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_alpaca_file, make_tiny_model

LAUNCH = Path(__file__).parents[2] / "launch.py"
COMMON = (
    "data=alpaca",
    "gpus=2",
    "device=cpu",
    "tracker=none",
    "train.max_steps=2",
    "train.global_batch=4",
    "train.sequence_length=64",
)

pytestmark = pytest.mark.distributed


def multirun(cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    rows = make_alpaca_file(cwd / "rows.json", 40)
    command = (sys.executable, str(LAUNCH), "-m", *COMMON, f"data.path={rows}", *overrides)
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def finished(cwd: Path) -> dict[str, bool]:
    """Every run's model, and whether it finished."""
    return {
        json.loads(job.read_text())["model"]["name"]: (job.parent / "attempts/1/finished.json").exists()
        for job in sorted((cwd / "runs").glob("*/job.json"))
    }


def test_a_cell_that_fails_stops_no_other(tmp_path: Path) -> None:
    good = make_tiny_model(tmp_path / "good")
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    (bad / "model.safetensors").unlink()
    done = multirun(tmp_path, "model=path", f"model.path={bad},{good}", "shard=zero2")
    assert done.returncode == 5, done.stderr
    assert finished(tmp_path) == {"bad": False, "good": True}
    assert done.stderr.index("2 plans") < done.stderr.index("Results")
    assert "1 of 2 finished" in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: 1 of 2 jobs failed"
    assert "Traceback" not in done.stderr.split("Results")[1]


def test_a_cell_that_cannot_fit_is_left_out(tmp_path: Path) -> None:
    """405B parameters in full do not fit this host's RAM; the tiny model's cell runs all the same."""
    good = make_tiny_model(tmp_path / "good")
    huge = tmp_path / "huge"
    shutil.copytree(good, huge)
    config = json.loads((huge / "config.json").read_text())
    config |= {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}
    (huge / "config.json").write_text(json.dumps(config))
    overrides = ("model=path", f"model.path={huge},{good}", "method=full")
    refused = multirun(tmp_path, *overrides)
    assert refused.returncode == 3, refused.stderr
    assert not (tmp_path / "runs").exists()
    last = refused.stderr.strip().splitlines()[-1]
    assert last == "error: 1 of 2 jobs do not fit; nothing was started (sweep.drop=true leaves them out)"
    done = multirun(tmp_path, *overrides, "sweep.drop=true")
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path) == {"good": True}
    assert "does not fit" in done.stderr
