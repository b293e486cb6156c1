"""Faults injected into the agents of two nodes, over stub ranks; test_agents_torchrun.py has those of real torchrun.

Two agents on this host stand in for two nodes. Each test ends by proving that nothing is left of the run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.render.types import LaunchPlan
from launcher.runs.attempts import last_attempt
from launcher.runs.layout import RunFolder
from launcher.runs.logs import rank_logs
from launcher.runs.markers import read_markers
from launcher.runs.processes import processes_of_run, send_signal
from launcher.runs.records import AttemptStart, Manifest, Status, read_record, write_record
from launcher.runs.stopping import TIME_LIMIT, ask_to_stop
from launcher.runs.tail import read_events, read_metrics
from tests.faults.agents import assert_nothing_left, nodes, on_hosts, on_slurm, stub_job, stub_run
from tests.faults.harness import ROOT, kill, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
JOB = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "0"}
Run = Callable[..., tuple[RunFolder, LaunchPlan]]


@pytest.fixture
def slurm_run(tmp_path: Path) -> Run:
    def make(*, slurm: dict[str, object] | None = None, **options: object) -> tuple[RunFolder, LaunchPlan]:
        return stub_run(tmp_path / "runs", on_slurm(stub_job(tmp_path), 2, **(slurm or {})), **options)  # type: ignore[arg-type]

    return make


def losses(run: RunFolder) -> dict[int, float]:
    return {metrics.step: metrics.loss for metrics in read_metrics(run.metrics)}


def test_runs_to_its_end(slurm_run: Run) -> None:
    run, launch = slurm_run(steps=5, STUB_SAVE_EVERY="2", STUB_STEP_S="0.3")
    with nodes(run, launch, env=JOB) as both:
        assert both.wait() == [0, 0]
        start = read_record(run.attempt_start(1), AttemptStart)
        assert start is not None
        assert (start.head, start.port, start.num_nodes) == ("127.0.0.1", both.port, 2)
        assert (start.submission, start.job_id, start.restart_count) == (1, "17", 0)
        assert run.job_claim(1).read_text() == "17\n"
        assert (both.state().status, both.state().exit_code) == (Status.FINISHED, 0)
        assert [both.end(node).exit_code for node in (0, 1)] == [0, 0]
        assert [death.rank for node in (0, 1) for death in both.end(node).deaths] == [0, 1]
        assert rank_logs(run, 1, 1)[1].read_text() == "rank 1 is up\n"
        assert str(rank_logs(run, 1, 1)[1]).startswith(str(run.logs(1, 1)))
        manifest = read_record(run.checkpoints / "checkpoint-4" / "manifest.json", Manifest)
        assert manifest is not None
        assert (manifest.attempt, manifest.job_id, manifest.world_size) == (1, "17", 2)
        events = [event for event in read_events(run.events) if event.source == "node"]
        assert {(event.stage, event.attempt, event.node) for event in events} == {
            ("start", 1, 0),
            ("start", 1, 1),
            ("end", 1, 0),
            ("no requeue", 1, 0),
        }
        assert not run.requeue(1).exists()
        assert_nothing_left(both)


def test_goes_on_after_the_time_limit_and_ends_with_the_same_losses(slurm_run: Run) -> None:
    run, launch = slurm_run(steps=60)
    with nodes(run, launch, env=JOB) as first:
        first.wait_for_steps()
        ask_to_stop(run, 1, TIME_LIMIT)  # by the batch script's trap
        assert first.wait() == [130, 130]
        stopped = read_markers(run, 1).stopped
        assert stopped is not None
        assert stopped.cause == TIME_LIMIT
        assert run.requeue(1).read_text() == f"it goes on after step {stopped.step}\n"
        assert (first.state().status, first.state().reason) == (
            Status.QUEUED,
            f"stopped after step {stopped.step} ({TIME_LIMIT})",
        )
        assert_nothing_left(first)
    with nodes(run, launch, env=JOB | {"SLURM_RESTART_COUNT": "1"}, attempt=2) as second:
        assert second.wait() == [0, 0]
        started = read_markers(run, 2).started
        assert started is not None
        assert started.resumed_from_step == stopped.step
        assert losses(run) == {step: 1.0 / step for step in range(1, 61)}
        assert_nothing_left(second)


@pytest.mark.parametrize("times", [1, 3])
def test_a_term_to_everything_saves_and_is_not_requeued(slurm_run: Run, times: int) -> None:
    run, launch = slurm_run(STUB_SAVE_S="1.0")
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        for _ in range(times):
            both.signal_everything(signal.SIGTERM)
            time.sleep(0.1)
        assert both.wait() == [130, 130]
        stopped = read_markers(run, 1).stopped
        assert stopped is not None
        assert stopped.checkpoint is not None
        assert (stopped.cause, run.requeue(1).exists()) == ("SIGTERM", False)
        assert both.state().status is Status.STOPPED
        assert [both.end(node).ended_by for node in (0, 1)] == ["", ""]
        assert_nothing_left(both)


def test_a_term_to_one_agent_alone_stops_all_nodes(slurm_run: Run) -> None:
    """Slurm's cgroup plugin signals only what it started itself."""
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        both.agents[1].send_signal(signal.SIGTERM)
        assert both.wait() == [130, 130]
        assert run.stop_file(1).read_text() == "SIGTERM\n"
        assert_nothing_left(both)


def test_usr1_to_everything_saves_and_goes_on(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        both.signal_everything(signal.SIGUSR1)
        assert both.wait() == [130, 130]
        stopped = read_markers(run, 1).stopped
        assert stopped is not None
        assert (stopped.cause, run.requeue(1).exists()) == ("SIGUSR1", True)
        assert_nothing_left(both)


def test_a_cancel_is_never_requeued(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        run.cancelled.touch()
        ask_to_stop(run, 1, TIME_LIMIT)  # even where the two come together
        assert both.wait() == [130, 130]
        assert not run.requeue(1).exists()
        assert_nothing_left(both)
    with nodes(run, launch, env=JOB, attempt=2) as again:
        again.agents[0].wait(timeout=20)
        assert again.agents[0].returncode == 0
        assert "the run was cancelled" in again.outputs[0].read_text()
        assert again.wait() == [0, 0]
        assert (last_attempt(run), again.state().attempt) == (1, 1)
        assert_nothing_left(again)


def test_a_second_job_of_one_submission_ends_at_once(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as first:
        first.wait_for_steps()
        with nodes(run, launch, env={"SLURM_JOB_ID": "18"}, attempt=2) as second:
            assert second.wait() == [0, 0]
            text = second.outputs[0].read_text()
            assert text == "fitlaunch: attempt 2 is not started: submission 1 belongs to job 17; this is job 18\n"
        steps = len(read_metrics(run.metrics))
        first.wait_for_steps(steps + 5)  # the first goes on
        assert all(agent.poll() is None for agent in first.agents)
        assert last_attempt(run) == 1
        first.agents[0].send_signal(signal.SIGTERM)
        assert first.wait() == [130, 130]
        assert_nothing_left(first)


def test_two_attempts_without_a_checkpoint_are_not_followed_by_a_third(slurm_run: Run) -> None:
    run, launch = slurm_run(STUB_MODE="exit")
    for attempt in (1, 2):
        with nodes(run, launch, env=JOB, attempt=attempt) as both:
            assert both.wait() == [5, 5]
    with nodes(run, launch, env=JOB, attempt=3) as third:
        assert third.agents[0].wait(timeout=20) == 5
        assert third.outputs[0].read_text() == (
            "fitlaunch: attempt 3 is not started: attempts 1 and 2 ended without a new checkpoint, "
            "and another would as well\n"
        )
        assert third.wait()[0] == 5
        assert (third.state().status, third.state().attempt) == (Status.FAILED, 2)
        assert_nothing_left(third)


def test_no_more_attempts_than_were_asked_for(slurm_run: Run) -> None:
    run, launch = slurm_run(slurm={"max_attempts": 1})
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        ask_to_stop(run, 1, TIME_LIMIT)
        assert both.wait() == [130, 130]
        assert not run.requeue(1).exists()
    with nodes(run, launch, env=JOB, attempt=2) as second:  # Slurm itself requeued it
        assert second.agents[0].wait(timeout=20) == 5
        assert "it was started 1 times, which is all that cluster.max_attempts allows" in second.outputs[0].read_text()
        second.wait()
        assert_nothing_left(second)


def test_a_killed_rank_is_the_first_death_on_its_node(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        kill(both.ranks()[1])
        killed_s = time.time()
        assert both.wait(60) == [5, 5]
        assert [(death.rank, death.exit_code) for death in both.end(1).deaths] == [(1, -signal.SIGKILL)]
        assert abs(both.end(1).deaths[0].seen_at_s - killed_s) < 2
        assert [(death.rank, death.exit_code) for death in both.end(0).deaths] == [(0, 1)]
        assert read_markers(run, 1).failures[0].message == "Connection closed by peer: rank 1"
        assert (both.state().status, both.state().exit_code) == (Status.FAILED, 5)
        assert both.state().reason.startswith("rank 1")
        assert "SIGKILL" in both.state().reason
        assert_nothing_left(both)


def test_a_node_whose_ranks_are_stuck_ends_after_another_has(slurm_run: Run) -> None:
    """As in a collective of NCCL, which does not notice that a peer has gone."""
    run, launch = slurm_run(STUB_STEP_S="600")
    with nodes(run, launch, env=JOB) as both:
        wait_for(lambda: run.started(1).exists() and len(both.ranks()) == 2, "the ranks", both.say)
        kill(both.ranks()[1])
        assert both.wait(60) == [5, 5]
        assert both.end(0).ended_by == "the ranks of node 1 have ended"
        assert_nothing_left(both)


def test_ranks_end_when_their_agent_is_killed(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        of_node_1 = both.processes(1)
        assert len(of_node_1) == 2
        both.agents[1].kill()
        wait_for(lambda: not both.processes(1), "the end of the ranks of node 1", both.say)
        both.agents[0].kill()
        both.wait()
        assert_nothing_left(both, within_s=10.0)
        assert [agent.returncode for agent in both.agents] == [-signal.SIGKILL, -signal.SIGKILL]
        assert not run.node_end(1, 1).exists()


def test_zombies_are_fenced_off(slurm_run: Run) -> None:
    """The links of the nodes were cut: agents and ranks go on while the scheduler starts the run elsewhere."""
    run, launch = slurm_run(STUB_SAVE_EVERY="40", STUB_SAVE_S="2.0")
    with nodes(run, launch, env=JOB) as old:
        old.wait_for_steps()
        for agent in old.agents:
            agent.send_signal(signal.SIGSTOP)  # so that the ranks alone have to see it
        begun = run.checkpoints / "checkpoint-40"
        wait_for(lambda: (begun / "states.bin").exists(), "a checkpoint that is begun", old.say)
        state = old.state()
        accept_elsewhere(run, 2)
        wait_for(lambda: run.failed(1, 0).exists(), "the end of rank 0", old.say)
        failure = read_markers(run, 1).failures[0]
        assert (failure.rank, failure.error_type) == (0, "Superseded")
        assert failure.message == "attempt 1 was superseded by attempt 2: it writes nothing more"
        for agent in old.agents:
            agent.send_signal(signal.SIGCONT)
        assert old.wait() == [5, 5]
        assert not (begun / "manifest.json").exists()
        # nor does the old head say anything of a run that is no longer its own
        assert (run.judged(1).exists(), old.state()) == (False, state)
        assert_nothing_left(old)


def test_agents_end_ranks_that_are_fenced_off_and_do_not_see_it(slurm_run: Run) -> None:
    run, launch = slurm_run(STUB_STEP_S="600")
    with nodes(run, launch, env=JOB) as old:
        wait_for(lambda: run.started(1).exists() and len(old.ranks()) == 2, "the ranks", old.say)
        accept_elsewhere(run, 2)
        assert old.wait(20) == [5, 5]
        assert [old.end(node).ended_by for node in (0, 1)] == ["superseded by attempt 2"] * 2
        assert_nothing_left(old)


def test_a_new_attempt_ends_what_an_earlier_one_has_left_on_its_nodes(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as old:
        old.wait_for_steps()
        for agent in old.agents:
            agent.send_signal(signal.SIGSTOP)
        with nodes(run, launch, env=JOB | {"SLURM_RESTART_COUNT": "1"}, attempt=2) as new:
            new.wait_for_steps()
            assert old.ranks() == {}
            new.agents[0].send_signal(signal.SIGTERM)
            assert new.wait() == [130, 130]
            assert (new.state().attempt, new.state().status) == (2, Status.STOPPED)
    assert_nothing_left(old)


def accept_elsewhere(run: RunFolder, attempt: int) -> None:
    """What the head of a later attempt leaves, on a node that this host knows nothing of."""
    start = AttemptStart(attempt=attempt, time_s=time.time(), head="elsewhere", port=20_000, num_nodes=2)
    write_record(run.attempt_start(attempt), start)


def test_a_stop_before_the_first_step_is_quick(slurm_run: Run) -> None:
    run, launch = slurm_run(STUB_LOAD_S="600")
    with nodes(run, launch, env=JOB) as both:
        wait_for(lambda: len(both.ranks()) == 2, "the ranks", both.say)
        both.agents[0].send_signal(signal.SIGTERM)
        assert both.wait(20) == [5, 5]
        assert both.state().reason == "stopped before the first step"
        assert [both.end(node).ended_by for node in (0, 1)] == ["no step was taken yet"] * 2
        assert_nothing_left(both)


def test_ranks_that_do_not_stop_are_ended_after_the_grace(slurm_run: Run) -> None:
    run, launch = slurm_run(STUB_MODE="stubborn")
    with nodes(run, launch, env=JOB, options=("--stop-grace", "2")) as both:
        both.wait_for_steps()
        ask_to_stop(run, 1, TIME_LIMIT)
        both.wait(60)
        assert both.end(1).ended_by == f"the ranks had not stopped 2 s after {TIME_LIMIT}"
        assert_nothing_left(both)


def test_the_agents_of_a_launcher_end_with_it(tmp_path: Path) -> None:
    run, launch = stub_run(tmp_path / "runs", on_hosts(stub_job(tmp_path), 2))
    with nodes(run, launch, options=("--stdin",), stdin=subprocess.PIPE) as both:
        for agent in both.agents:
            assert agent.stdin is not None
            agent.stdin.write(b'{"HF_TOKEN": "secret"}\n')
            agent.stdin.flush()
        both.wait_for_steps()
        environ = [Path(f"/proc/{process.pid}/environ").read_bytes() for process in both.ranks().values()]
        assert all(b"HF_TOKEN=secret" in text for text in environ)
        state = both.state()
        assert (state.status, state.attempt) == (Status.RENDERED, 0)  # the launcher's to write
        for agent in both.agents:
            assert agent.stdin is not None
            agent.stdin.close()
        codes = both.wait(30)
        assert codes[0] == codes[1]
        assert codes[0] in (5, 130)  # the ranks may still save in the time between TERM and KILL
        assert [both.end(node).ended_by for node in (0, 1)] == ["the launcher is gone"] * 2
        assert "secret" not in "".join(path.read_text() for path in run.root.rglob("*") if path.is_file())
        assert_nothing_left(both)


def test_an_agent_whose_launcher_is_gone_before_it_spoke_starts_nothing(tmp_path: Path) -> None:
    run, launch = stub_run(tmp_path / "runs", on_hosts(stub_job(tmp_path), 1))
    with nodes(run, launch, count=1, options=("--stdin",)) as one:
        assert one.wait(20) == [4]
        assert "the launcher was gone before it had said" in one.say()
        assert not run.node(1, 0).exists()


def test_a_node_that_does_not_see_the_model_is_named(slurm_run: Run, tmp_path: Path) -> None:
    run, launch = slurm_run()
    (tmp_path / "model" / "config.json").unlink()
    with nodes(run, launch, env=JOB) as both:
        both.wait(60)
        assert "model.path=" in both.end(0).ended_by
        assert (both.state().status, both.state().exit_code) == (Status.FAILED, 4)
        assert_nothing_left(both)


def test_end_leaves_nothing_on_this_host(slurm_run: Run) -> None:
    run, launch = slurm_run(STUB_MODE="stubborn", STUB_RANK="0")
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()

        def end() -> subprocess.CompletedProcess[str]:
            words = (sys.executable, "-P", "-m", "launcher.node", "--end", str(run.root))
            return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

        done = end()
        assert (json.loads(done.stdout), done.returncode) == (6, 0)  # two agents, two torchruns, two ranks
        assert processes_of_run(launch.run_dir) == ()
        both.wait(20)
        again = end()
        assert (json.loads(again.stdout), again.returncode) == (0, 0)


def test_a_killed_program_above_the_ranks(slurm_run: Run) -> None:
    run, launch = slurm_run()
    with nodes(run, launch, env=JOB) as both:
        both.wait_for_steps()
        send_signal(both.processes(1)[0], signal.SIGKILL)
        assert both.wait(90) != [0, 0]
        assert both.end(1).exit_code == -signal.SIGKILL
        assert_nothing_left(both)
