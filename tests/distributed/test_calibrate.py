"""`fitlaunch calibrate` with real processes: CPU ranks by real jobs, and NCCL's steps over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from launcher.calibrating import cpu
from launcher.calibrating.amounts import by_collective, nccl_amounts
from launcher.calibrating.command import calibrate
from launcher.planner.calibration import load_constants
from launcher.planner.constants import Basis, Key
from launcher.readings import NcclReadings
from launcher.spec import ShardKind
from launcher.units import MIB
from tests.planner_jobs import card

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}


def test_cpu_ranks_are_measured_by_real_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MODEL", cpu.MODEL | TINY)
    monkeypatch.setenv("FITLAUNCH_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "kept"
    with (tmp_path / "said.txt").open("w") as said:
        found = calibrate(cpu=True, shards=(ShardKind.DDP,), output=kept, console=Console(file=said, width=200))
    process, slack = found.amounts
    assert (process.key, process.shard) == (Key.CPU_PROCESS, ShardKind.DDP)
    assert 200 * MIB < process.amount < 4096 * MIB
    assert slack.key is Key.CPU_SLACK
    assert slack.amount >= 100
    assert found.versions["torch"]
    assert [path.name for path in kept.iterdir()] == [found.file_name]
    constants = load_constants({"FITLAUNCH_CALIBRATION": str(kept)})
    taken = constants.get(Key.CPU_PROCESS, card("cpu"), shard=ShardKind.DDP)
    assert (taken.amount, taken.basis) == (process.amount, Basis.MEASURED)
    assert taken.source.startswith("fitlaunch calibrate --cpu on ")
    assert "process of a CPU rank" in (tmp_path / "said.txt").read_text()


def test_the_steps_of_nccl_run_over_gloo(tmp_path: Path) -> None:
    output = tmp_path / "readings.json"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    argv = (*launcher, "-m", "jobs.calibrate", "nccl", str(output), "--device", "cpu")
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=200)
    found = msgspec.json.decode(output.read_bytes(), type=NcclReadings)
    assert len(found.ranks) == 2
    steps = [stage for stage, _ in by_collective(found.ranks[0])]
    assert steps == [
        f"{communicator} communicator: {collective}"
        for communicator in ("first", "second")
        for collective in ("small all-reduce", "all-reduce", "all-gather", "reduce-scatter", "broadcast")
    ]
    assert [(amount.key, amount.num_ranks) for amount in nccl_amounts(found)] == [
        (Key.NCCL_COMMUNICATORS, 2),
        (Key.NCCL_BASE, 2),
    ]
