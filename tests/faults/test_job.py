"""The main faults again with the real job on a tiny model: what the stubs promise holds for jobs/train.py."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.markers import read_markers
from launcher.runs.records import Manifest, Status, TrainMetrics, read_record
from launcher.runs.registry import summarise
from launcher.runs.tail import read_metrics
from launcher.spec import Program, ShardKind
from launcher.targets.ports import choose_port
from tests.faults.harness import (
    LauncherProcess,
    assert_nothing_left,
    assert_state,
    kill,
    launcher_process,
    wait_for,
)
from tests.launching import make_launch
from tests.ranks import make_spec
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
MANY_STEPS = 100_000
CELLS = [(Program.TORCHRUN, ShardKind.DDP), (Program.DEEPSPEED, ShardKind.ZERO2)]
both_programs = pytest.mark.parametrize(("program", "shard"), CELLS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny_model(root / "model")
    make_alpaca_file(root / "data.json")
    return root


@pytest.fixture
def launch_of(tiny: Path, tmp_path: Path) -> Callable[..., LaunchPlan]:
    def launch(program: Program, shard: ShardKind, *, max_steps: int) -> LaunchPlan:
        spec = make_spec(tiny / "model", tiny / "data.json", shard=shard, max_steps=max_steps)
        spec = dataclasses.replace(spec, program=program)
        return make_launch(
            tmp_path, spec=spec, run_id="run", python=sys.executable, master_port=choose_port(str(tmp_path))
        )

    return launch


def wait_for_step_of(launcher: LauncherProcess, attempt: int) -> None:
    def has_stepped() -> bool:
        metrics = read_metrics(launcher.run.metrics)
        return any(isinstance(record, TrainMetrics) and record.attempt == attempt for record in metrics)

    wait_for(has_stepped, f"a step of attempt {attempt}", launcher.say)


def manifest(run: RunFolder, folder: str) -> Manifest:
    found = read_record(run.root / folder / "manifest.json", Manifest)
    assert found is not None
    return found


@both_programs
def test_stops_saves_and_goes_on(launch_of: Callable[..., LaunchPlan], program: Program, shard: ShardKind) -> None:
    launch = launch_of(program, shard, max_steps=MANY_STEPS)
    with launcher_process(launch) as first:
        wait_for_step_of(first, 1)
        first.send(signal.SIGINT)
        assert first.wait() == 130
        stopped = read_markers(first.run, 1).stopped
        assert stopped is not None
        assert stopped.checkpoint is not None
        assert manifest(first.run, stopped.checkpoint).step == stopped.step
        assert_state(first, Status.STOPPED, 130)
        assert not first.run.result.exists()
        assert_nothing_left(first)
    with launcher_process(launch, write=False) as second:
        wait_for_step_of(second, 2)
        started = read_markers(second.run, 2).started
        assert started is not None
        assert started.resumed_from_step == stopped.step
        kill(second.rank(1))
        assert second.wait() == 5
        assert second.state().reason.startswith("rank 1 was killed by SIGKILL")
        assert_state(second, Status.FAILED, 5)
        assert_nothing_left(second)


@both_programs
def test_the_launcher_is_killed(launch_of: Callable[..., LaunchPlan], program: Program, shard: ShardKind) -> None:
    with launcher_process(launch_of(program, shard, max_steps=MANY_STEPS)) as launcher:
        wait_for_step_of(launcher, 1)
        launcher.send(signal.SIGKILL)
        launcher.wait()
        # the ranks look once a second; then the program that started them ends the rest
        assert_nothing_left(launcher, within_s=40.0)
        summary = summarise(launcher.run)
        assert (summary.status, summary.reason) == (Status.FAILED, "its launcher was killed, and left no result")
        assert launcher.run.lock.exists()
        with hold_lock(launcher.run.lock, what="the run"):  # a lock file left behind blocks nobody
            pass


def test_deepspeed_finishes(launch_of: Callable[..., LaunchPlan]) -> None:
    with launcher_process(launch_of(Program.DEEPSPEED, ShardKind.ZERO3, max_steps=3)) as launcher:
        assert launcher.wait() == 0
        markers = read_markers(launcher.run, 1)
        assert markers.finished is not None
        assert markers.finished.num_steps == 3
        assert [measured.rank for measured in markers.measurements] == [0, 1]
        assert manifest(launcher.run, markers.finished.result).world_size == 2
        assert_state(launcher, Status.FINISHED, 0)
        assert_nothing_left(launcher)


@both_programs
def test_every_rank_refuses_a_job_that_changed(
    launch_of: Callable[..., LaunchPlan], program: Program, shard: ShardKind
) -> None:
    with launcher_process(launch_of(program, shard, max_steps=3)) as launcher:
        wait_for(lambda: len(launcher.processes()) >= 1, "a process of the run", launcher.say)
        launcher.run.job.write_text(launcher.run.job.read_text().replace('"seed": 7', '"seed": 8'))
        assert launcher.wait() == 5
        assert {failure.error_type for failure in read_markers(launcher.run, 1).failures} == {"StartRefused"}
        assert_nothing_left(launcher)
