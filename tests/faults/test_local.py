"""Faults injected into real launchers with real torchrun and DeepSpeed processes over stub ranks.

test_job.py has those in which the job itself has a part. Each test ends by proving that no process, port, lock or
half-written file is left.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.errors import SubmitError
from launcher.runs.markers import read_markers
from launcher.runs.outcome import Metrics
from launcher.runs.processes import processes_of_run, read_environment
from launcher.runs.records import Event, Status
from launcher.runs.registry import summarise
from launcher.runs.tail import read_events, read_metrics
from launcher.spec import Program
from launcher.targets.cancel import cancel
from launcher.targets.folder import write_run_folder
from launcher.targets.local import start_attempt
from launcher.targets.start import start_and_follow
from tests.faults.harness import (
    assert_no_half_written_file,
    assert_nothing_left,
    assert_state,
    kill,
    launcher_process,
    stub_launch,
    wait_for,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150)]
both_programs = pytest.mark.parametrize("program", list(Program))


def test_runs_to_its_end(tmp_path: Path) -> None:
    with launcher_process(stub_launch(tmp_path, Program.TORCHRUN, steps=5)) as launcher:
        assert launcher.wait() == 0
        assert_state(launcher, Status.FINISHED, 0)
        assert [metrics.step for metrics in read_metrics(launcher.run.metrics)] == [1, 2, 3, 4, 5]
        assert not launcher.run.lock.exists()
        assert_nothing_left(launcher)


@pytest.mark.parametrize(
    ("program", "number"),
    [
        (Program.TORCHRUN, signal.SIGINT),
        (Program.TORCHRUN, signal.SIGTERM),
        (Program.TORCHRUN, signal.SIGHUP),
        (Program.DEEPSPEED, signal.SIGINT),
        (Program.DEEPSPEED, signal.SIGTERM),
    ],
)
def test_stops_at_a_step_when_asked(tmp_path: Path, program: Program, number: signal.Signals) -> None:
    with launcher_process(stub_launch(tmp_path, program)) as launcher:
        launcher.wait_for_steps()
        launcher.send(number)
        assert launcher.wait() == 130
        stopped = read_markers(launcher.run, 1).stopped
        assert stopped is not None
        assert stopped.step == read_metrics(launcher.run.metrics)[-1].step
        assert launcher.run.stop_file(1).read_text() == f"{number.name}\n"
        assert_state(launcher, Status.STOPPED, 130)
        assert_nothing_left(launcher)


@both_programs
def test_asked_twice_ends_at_once(tmp_path: Path, program: Program) -> None:
    with launcher_process(stub_launch(tmp_path, program, mode="stubborn")) as launcher:
        launcher.wait_for_steps()
        launcher.send(signal.SIGINT)
        time.sleep(1.0)
        asked_s = time.monotonic()
        launcher.send(signal.SIGINT)
        assert launcher.wait() == 130
        assert time.monotonic() - asked_s < 20
        assert launcher.state().reason == "ended by force: the user asked again"
        assert_state(launcher, Status.FAILED, 130)
        assert_nothing_left(launcher)


def test_a_rank_that_hangs_at_the_stop_is_ended_after_the_grace(tmp_path: Path) -> None:
    launch = stub_launch(tmp_path, Program.TORCHRUN, mode="stubborn")
    with launcher_process(launch, grace_s=3.0) as launcher:
        launcher.wait_for_steps()
        launcher.send(signal.SIGTERM)
        assert launcher.wait() == 130
        assert launcher.state().reason == "ended by force: the ranks had not stopped 3 s after SIGTERM"
        assert_nothing_left(launcher)


@both_programs
def test_a_stop_before_the_first_step_is_quick(tmp_path: Path, program: Program) -> None:
    with launcher_process(stub_launch(tmp_path, program)) as launcher:
        wait_for(lambda: len(launcher.processes()) >= 1, "a process of the run", launcher.say)
        launcher.send(signal.SIGINT)
        asked_s = time.monotonic()
        assert launcher.wait() == 130
        assert time.monotonic() - asked_s < 15
        assert launcher.state().reason == "stopped before the first step"
        assert_state(launcher, Status.STOPPED, 130)
        assert_nothing_left(launcher)


@both_programs
def test_a_rank_that_raises_fails_the_run(tmp_path: Path, program: Program) -> None:
    with launcher_process(stub_launch(tmp_path, program, mode="raise")) as launcher:
        assert launcher.wait() == 5
        assert launcher.state().reason == "rank 1 failed with ValueError: the stub was told to fail"
        assert "ValueError: the stub was told to fail" in launcher.say()  # the tail of rank 1's log
        assert read_markers(launcher.run, 1).failures[0].rank == 1
        assert_state(launcher, Status.FAILED, 5)
        assert_nothing_left(launcher)


@both_programs
def test_ranks_are_ended_when_the_program_above_them_is_killed(tmp_path: Path, program: Program) -> None:
    """DeepSpeed's front end exits 0 over a killed launcher, and torchrun's ranks are in sessions of their own."""
    with launcher_process(stub_launch(tmp_path, program)) as launcher:
        launcher.wait_for_steps()
        agents = [process for process in launcher.processes() if "RANK" not in read_environment(process.pid)]
        kill(agents[-1])
        assert launcher.wait() == 5
        # TERM makes them save and stop; nobody had asked for that
        how = "was killed by SIGKILL" if program is Program.TORCHRUN else "ended with exit code 0"
        module = launcher.launch.argv[2]
        stopped = read_markers(launcher.run, 1).stopped
        assert stopped is not None
        assert launcher.state().reason == (
            f"{module} {how} and left its ranks behind, and they stopped after step {stopped.step} (SIGTERM)"
        )
        assert_state(launcher, Status.STOPPED, 5)
        assert_nothing_left(launcher)


class BrokenObserver:
    """A progress bar with a bug."""

    def update(self, *, events: Sequence[Event], metrics: Sequence[Metrics]) -> None:
        raise KeyError("a bug")


def test_neither_a_broken_progress_bar_nor_a_rank_that_lingers_costs_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.node.run.RESULT_GRACE_S", 1.0)
    launch = stub_launch(tmp_path, Program.TORCHRUN, mode="linger", steps=3)
    outcome = start_and_follow(launch, observer=BrokenObserver())
    assert (outcome.status, outcome.exit_code, outcome.first_cause) == (Status.FINISHED, 0, "")
    assert processes_of_run(launch.run_dir) == ()
    launchers = [event for event in read_events(outcome.run_dir / "events.jsonl") if event.source == "launcher"]
    assert [(event.stage, event.detail) for event in launchers[1:]] == [
        ("progress is no longer shown", "KeyError('a bug')"),
        ("end by force", "the ranks did not exit when their work was done"),
        ("end", "finished"),
    ]


def test_a_plan_that_changed_is_not_started(tmp_path: Path) -> None:
    run = write_run_folder(stub_launch(tmp_path, Program.TORCHRUN), now_s=0.0)
    run.job.write_text(run.job.read_text() + " ")
    with pytest.raises(SubmitError, match=r"^job\.json in .* changed after it was rendered"):
        start_attempt(run)
    assert not run.attempt(1).exists()
    assert_no_half_written_file(run)


def test_one_run_is_started_once_at_a_time(tmp_path: Path) -> None:
    with launcher_process(stub_launch(tmp_path, Program.TORCHRUN)) as launcher:
        launcher.wait_for_steps()
        with launcher_process(launcher.launch, write=False) as second:
            assert second.wait() == 4
            assert second.say() == "run run is being followed by another launcher: wait for it, or cancel it\n"
            assert launcher.process.poll() is None
            assert summarise(launcher.run).status is Status.RUNNING
            assert len(launcher.processes()) == 3
            summary = cancel(launcher.run)
        assert launcher.wait() == 130
        assert (summary.status, launcher.run.stop_file(1).read_text()) == (Status.STOPPED, "cancel\n")
        assert_nothing_left(launcher)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    launch = stub_launch(tmp_path, Program.TORCHRUN)
    launch = type(launch)(
        run_id=launch.run_id,
        run_dir=launch.run_dir,
        argv=("/nowhere/python", *launch.argv[1:]),
        env=launch.env,
        files=launch.files,
    )
    with launcher_process(launch) as launcher:
        assert launcher.wait() == 4
        assert launcher.say() == "run run could not be started: /nowhere/python: No such file or directory\n"
        assert_state(launcher, Status.FAILED, 4)
        assert_nothing_left(launcher)


def test_a_launching_program_that_is_not_there(tmp_path: Path) -> None:
    launch = stub_launch(tmp_path, Program.TORCHRUN)
    argv = tuple("torch.not_there" if word == "torch.distributed.run" else word for word in launch.argv)
    launch = type(launch)(run_id=launch.run_id, run_dir=launch.run_dir, argv=argv, env=launch.env, files=launch.files)
    with launcher_process(launch) as launcher:
        assert launcher.wait() == 4
        assert "No module named torch.not_there" in launcher.say()
        assert_state(launcher, Status.FAILED, 4)
        assert_nothing_left(launcher)


def test_a_runs_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocker = tmp_path / "runs"
    blocker.write_text("a file where the folder should be")
    with pytest.raises(SubmitError, match="cannot be written"):
        write_run_folder(stub_launch(blocker, Program.TORCHRUN), now_s=0.0)
    assert list(tmp_path.iterdir()) == [blocker]


def test_a_disk_that_fills_while_the_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import launcher.targets.folder as folder

    def no_space(path: Path, record: object) -> None:
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_record", no_space)
    with pytest.raises(SubmitError, match="No space left on device"):
        write_run_folder(stub_launch(tmp_path, Program.TORCHRUN), now_s=0.0)
    assert list(tmp_path.iterdir()) == []
