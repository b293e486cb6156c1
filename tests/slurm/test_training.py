"""Real training through sbatch, as a user types it: on two nodes, and cut off in every way that Slurm has.

Whatever cuts it off, the losses are those of a run that nobody interrupts.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.runs.attempts import accepted_attempts
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers
from launcher.runs.records import EvalMetrics, Finished, RunState, Started, Status, Stopped, TrainMetrics, read_record
from launcher.runs.registry import list_runs
from launcher.runs.tail import read_metrics
from slurm.bed import Bed
from slurm.bed.packages import SEARCH
from slurm.bed.processes import command_of, send, wait_until
from tests.slurm.harness import NODE_LOSS_S, ROOT, job_fields, submit, wait_for_state
from tests.slurm.runs import submission
from tests.slurm.several import pids_on
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

NUM_STEPS = 30
SAVE_EVERY = 10


@dataclass(frozen=True)
class Queued:
    """A job queued by the launcher's own command, and its run."""

    bed: Bed
    run: RunFolder
    job_id: str

    def log(self) -> str:
        """What its batch script and ranks have printed."""
        path = self.run.root / f"slurm-{self.job_id}.out"
        return path.read_text() if path.exists() else "no log"

    def wait_until_completed(self) -> None:
        """Wait until Slurm says so."""
        state = wait_for_state(
            self.bed, self.job_id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout_s=400
        )
        assert state == "COMPLETED", self.log()

    def losses(self, attempt: int | None = None) -> dict[int, float]:
        """The loss of each training step, of one attempt or of all; of a step taken twice, the later."""
        found = (each for each in read_metrics(self.run.metrics) if isinstance(each, TrainMetrics))
        return {each.step: each.loss for each in found if attempt in (None, each.attempt)}

    def held_out_loss(self) -> float:
        """The loss on held-out rows at the end."""
        return [each.loss for each in read_metrics(self.run.metrics) if isinstance(each, EvalMetrics)][-1]

    def stopped(self, attempt: int) -> Stopped:
        """What an attempt wrote when it was asked to stop."""
        found = read_markers(self.run, attempt).stopped
        assert found is not None, self.log()
        return found

    def resumed(self, attempt: int) -> Started:
        """What an attempt wrote when its ranks had loaded."""
        found = read_record(self.run.started(attempt), Started)
        assert found is not None, self.log()
        return found

    @contextlib.contextmanager
    def held_at(self, step: int) -> Iterator[None]:
        """Hold the ranks at this step, or soon after: what is to hit them then cannot come too late."""
        if not wait_until(lambda: step in self.losses(), timeout_s=200, poll_s=0.02):
            raise AssertionError(f"no step {step}: {job_fields(self.bed, self.job_id)}\n{self.log()}")
        self._signal_ranks(signal.SIGSTOP)
        yield
        self._signal_ranks(signal.SIGCONT)

    def _signal_ranks(self, number: signal.Signals) -> None:
        for node in self.bed.settings.nodes:
            for pid in pids_on(self.bed, node.name, self.run) if self.bed.is_on(node.name) else ():
                words = command_of(pid)
                if "jobs.train" in words and "torch.distributed.run" not in words:
                    send(pid, number)


def queue(bed: Bed, runs_dir: Path, *overrides: str) -> Queued:
    """Queue a job, as a user does."""
    known = {run.run_id for run in list_runs(runs_dir)}
    words = (sys.executable, "launch.py", "cluster=slurm", "device=cpu", f"runs_dir={runs_dir}", *overrides)
    done = bed.login(words, cwd=ROOT, env={"PATH": SEARCH, "OMP_NUM_THREADS": "1"}, timeout_s=120)
    assert done.returncode == 0, done.stderr
    (run,) = (RunFolder(run.run_dir) for run in list_runs(runs_dir) if run.run_id not in known)
    job_id = submission(run).job_id
    assert job_id is not None
    return Queued(bed=bed, run=run, job_id=job_id)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """One rank on each of two nodes, by FSDP, whose checkpoints are in pieces."""
    folder = tmp_path_factory.mktemp("job")
    model, rows = make_tiny_model(folder / "model"), make_alpaca_file(folder / "rows.json", 80)
    return (
        "nodes=2", "gpus=1", "model=path", f"model.path={model}", "data=alpaca", f"data.path={rows}", "method=full",
        "shard=fsdp", "train.global_batch=8", "train.sequence_length=64", f"train.max_steps={NUM_STEPS}",
        "train.learning_rate=5e-3", f"train.save_every_steps={SAVE_EVERY}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(standing_bed: Bed, job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Queued:
    """The job that all others are compared with."""
    queued = queue(standing_bed, tmp_path_factory.mktemp("alone"), *job, "cluster.time=20")
    queued.wait_until_completed()
    assert sorted(queued.losses()) == list(range(1, NUM_STEPS + 1))
    return queued


def assert_as_if_never_cut_off(queued: Queued, uninterrupted: Queued) -> None:
    """The second attempt finished, and every step of both has the loss that it has in the run nobody interrupted."""
    expected = uninterrupted.losses()
    assert read_record(queued.run.finished(2), Finished) is not None, queued.log()
    first, second = queued.losses(attempt=1), queued.losses(attempt=2)
    assert list(second) == list(range((queued.resumed(2).resumed_from_step or 0) + 1, NUM_STEPS + 1))
    assert first == pytest.approx({step: expected[step] for step in first}, rel=1e-5)
    assert second == pytest.approx({step: expected[step] for step in second}, rel=1e-5)
    assert queued.held_out_loss() == pytest.approx(uninterrupted.held_out_loss(), rel=1e-5)
    state = read_record(queued.run.state, RunState)
    assert state is not None
    assert (state.status, state.attempt) == (Status.FINISHED, 2)
    starts = accepted_attempts(queued.run, submission=1)
    assert [(each.attempt, each.job_id, each.restart_count) for each in starts] == [
        (1, queued.job_id, 0),
        (2, queued.job_id, 1),
    ]
    assert f"fitlaunch: job {queued.job_id}, attempt 2 on " in queued.log()


def test_a_preempted_job_goes_on(bed: Bed, tmp_path: Path, job: tuple[str, ...], uninterrupted: Queued) -> None:
    queued = queue(bed, tmp_path, *job, "cluster.time=20", "cluster.nodelist=['node[1-2]']")
    with queued.held_at(3):
        needs_both = ("--partition=high", "--nodelist=node[1-2]", "--nodes=2", "--exclusive", "--output=/dev/null")
        other = submit(bed, "#!/bin/bash\nsleep 1\n", *needs_both)
        preempted = wait_until(
            lambda: job_fields(bed, queued.job_id).get("PreemptTime", "None") not in ("None", "N/A"), timeout_s=60
        )
        assert preempted, job_fields(bed, queued.job_id)
    assert wait_for_state(bed, other, timeout_s=120) == "COMPLETED"
    queued.wait_until_completed()
    assert queued.stopped(1).checkpoint is not None
    assert queued.stopped(1).cause in ("TERM", "SIGTERM")
    assert 3 <= queued.stopped(1).step == queued.resumed(2).resumed_from_step == max(queued.losses(attempt=1))
    assert not queued.run.requeue(1).exists(), "Slurm itself requeues what it preempts"
    assert_as_if_never_cut_off(queued, uninterrupted)


def test_at_its_time_limit_a_job_goes_on(bed: Bed, tmp_path: Path, job: tuple[str, ...], uninterrupted: Queued) -> None:
    """Slurm 22.05 looks at time limits every 30 s, and warns whoever would be late at the next look: here between 30
    and 60 s after the start."""
    queued = queue(bed, tmp_path, *job, "cluster.time=2", "cluster.lead_s=60")
    with queued.held_at(3):
        assert wait_until(queued.run.stop_file(1).exists, timeout_s=90), queued.log()
    assert wait_until(queued.run.requeue(1).exists, timeout_s=60), queued.log()
    bed.must("head", ("scontrol", "update", f"JobId={queued.job_id}", "TimeLimit=20"))  # once is enough
    queued.wait_until_completed()
    assert queued.stopped(1).cause == "time limit"
    assert 3 <= queued.stopped(1).step == queued.resumed(2).resumed_from_step == max(queued.losses(attempt=1))
    assert_as_if_never_cut_off(queued, uninterrupted)


def test_a_node_without_power_costs_the_steps_since_the_last_checkpoint(
    bed: Bed, tmp_path: Path, job: tuple[str, ...], uninterrupted: Queued
) -> None:
    """Of one job it is the second node, of the other the one that runs the batch script."""
    two = [
        queue(bed, tmp_path, *job, "cluster.time=20", f"cluster.nodelist=['node[{pair}]']") for pair in ("1-2", "2-3")
    ]
    with two[0].held_at(SAVE_EVERY + 3), two[1].held_at(SAVE_EVERY + 3):
        assert [job_fields(bed, queued.job_id)["BatchHost"] for queued in two] == ["node1", "node2"]
        bed.power_off("node2")
    for queued in two:
        requeued = wait_until(lambda: job_fields(bed, queued.job_id)["Restarts"] == "1", timeout_s=NODE_LOSS_S)  # noqa: B023
        assert requeued, job_fields(bed, queued.job_id)
    bed.boot("node2")
    for queued in two:
        queued.wait_until_completed()
        assert queued.resumed(2).resumed_from_step == SAVE_EVERY
        assert max(queued.losses(attempt=1)) >= SAVE_EVERY + 3
        assert_as_if_never_cut_off(queued, uninterrupted)


@pytest.mark.demo
def test_the_demo_model_trains_on_two_nodes_of_two_ranks(bed: Bed, tmp_path: Path) -> None:
    short = ("train.max_steps=2", "train.global_batch=4", "train.sequence_length=64", "data.max_samples=24")
    queued = queue(bed, tmp_path, "experiment=demo", "nodes=2", "gpus=2", "cluster.time=20", *short)
    queued.wait_until_completed()
    finished = read_record(queued.run.finished(1), Finished)
    assert finished is not None
    assert finished.num_steps == len(queued.losses()) == 2
    assert finished.eval_loss_before is not None
    assert finished.eval_loss_after is not None
    assert finished.eval_loss_after < finished.eval_loss_before
    assert {path.name for path in queued.run.root.glob("attempts/1/measured-rank-*.json")} == {
        f"measured-rank-{rank}.json" for rank in range(4)
    }
