"""The demo model on two hosts of two ranks, by both launchers: the same losses as on one host."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.records import Finished, TrainMetrics, read_record
from launcher.runs.registry import list_runs
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.settings import HEAD
from tests.slurm.harness import ROOT
from tests.slurm.several import assert_nothing_left

pytestmark = [pytest.mark.slurm, pytest.mark.demo, pytest.mark.timeout(580)]

TRAINING_S = 500.0
NUM_STEPS = 2


@dataclass(frozen=True)
class Trained:
    """What a run came to, rounded to what does not depend on the order of sums."""

    run: RunFolder
    finished: Finished
    losses: tuple[float, ...]


def train(bed: Bed, cwd: Path, *overrides: str) -> Trained:
    """launch.py from the login node, on the demo model under ZeRO-2."""
    cwd.mkdir(exist_ok=True)
    command = (
        sys.executable, str(ROOT / "launch.py"), "experiment=demo", f"runs_dir={cwd}/runs", "device=cpu", "shard=zero2",
        f"train.max_steps={NUM_STEPS}", "train.global_batch=4", "train.micro_batch=1", "train.sequence_length=64",
        "data.max_samples=24", "tracker=none", *overrides,
    )  # fmt: skip
    done: subprocess.CompletedProcess[str] = bed.login(command, cwd=cwd, timeout_s=TRAINING_S)
    assert done.returncode == 0, done.stderr
    run = RunFolder(list_runs(cwd / "runs")[-1].run_dir)
    finished = read_record(run.finished(1), Finished)
    assert finished is not None
    losses = tuple(m.loss for m in read_metrics(run.metrics) if isinstance(m, TrainMetrics))
    return Trained(run=run, finished=finished, losses=losses)


@pytest.fixture(scope="module")
def on_one_host(standing_bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The reference: two ranks on the login node, with twice the accumulation."""
    return train(standing_bed, tmp_path_factory.mktemp("one"), "gpus=2")


@pytest.mark.parametrize("program", ["torchrun", "deepspeed"])
def test_two_hosts_train_as_one_does(bed: Bed, tmp_path: Path, on_one_host: Trained, program: str) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=2\nnode2 slots=2\n")
    found = train(bed, tmp_path / "two", "cluster=hosts", f"cluster.hostfile={hostfile}", f"launcher={program}")
    assert len(found.losses) == NUM_STEPS
    assert found.losses == pytest.approx(on_one_host.losses, abs=2e-4)
    assert found.finished.eval_loss_before == pytest.approx(on_one_host.finished.eval_loss_before, abs=2e-4)
    assert found.finished.eval_loss_after == pytest.approx(on_one_host.finished.eval_loss_after, abs=2e-4)
    assert found.finished.eval_loss_after < found.finished.eval_loss_before
    texts = [path.read_text() for path in found.run.attempt(1).glob("measured-*")]
    hosts = {text.split('"host": "')[1].partition('"')[0] for text in texts}
    assert hosts == {"node1", "node2"}
    assert_nothing_left(bed, found.run)
    assert HEAD not in hosts
