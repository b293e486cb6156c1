"""How a run stands that a scheduler starts: proven, or unknown."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.operate.queue import SlurmQueue
from launcher.report.console import make_console
from launcher.report.past import failure_of
from launcher.report.runs_table import show_runs, show_status
from launcher.runs.layout import RunFolder
from launcher.runs.markers import Markers
from launcher.runs.records import (
    AttemptStart,
    Failed,
    NodeEnd,
    RankDeath,
    RunState,
    Status,
    Stopped,
    Submission,
    write_record,
)
from launcher.runs.registry import NO_MARKERS, list_runs, summarise
from launcher.runs.status import Queued, queued_status
from launcher.scheduler.client import SchedulerRefused, SchedulerSilent
from launcher.scheduler.jobs import Job
from launcher.spec import read_job
from launcher.targets.folder import write_run_folder
from tests.launching import make_launch
from tests.markers import FINISHED

STOPPED = Stopped(attempt=1, time_s=9.0, step=12, cause="time limit", checkpoint="checkpoints/checkpoint-12")
NOT_TOLD = Submission(number=1, cluster="slurm", job_name="fitlaunch-run", time_s=1.0)
SENT = Submission(number=1, cluster="slurm", job_name="fitlaunch-run", time_s=1.0, job_id="17")
AGAIN = Submission(number=2, cluster="slurm", job_name="fitlaunch-run", time_s=5.0, job_id="18")
START = AttemptStart(attempt=1, time_s=2.0, head="node1", port=20_017, num_nodes=2, submission=1, job_id="17")


def job(state: str, reason: str = "None", *, job_id: str = "17", nodes: str = "", start: str = "N/A") -> Job:
    return Job(job_id=job_id, name="fitlaunch-run", state=state, reason=reason, nodes=nodes, start=start)


def end(node: int) -> NodeEnd:
    return NodeEnd(
        attempt=1, node_rank=node, host=f"node{node + 1}", started_at_s=2.0, ended_at_s=9.0, exit_code=1, deaths=()
    )


def state(status: Status, reason: str = "") -> RunState:
    return RunState(run_id="run", status=status, attempt=1, created_at_s=1.0, updated_at_s=2.0, reason=reason)


def markers(**there: Any) -> Markers:
    nothing = {"started": None, "finished": None, "stopped": None, "failures": (), "measurements": ()}
    return Markers(**{**nothing, **there})


def told(**what: Any) -> tuple[str, str]:
    known: dict[str, Any] = {"submission": SENT, "attempt": 0, "num_nodes": 2, "markers": NO_MARKERS}
    if "start" in what:
        known["attempt"] = 1
    status, reason = queued_status(Queued(**{**known, **what}))
    return status.value, reason


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        # in the queue
        ({"job": job("PENDING", "Priority")}, ("queued", "job 17 waits (Priority)")),
        (
            {"job": job("PENDING", "Resources", start="2026-11-22T03:15:02")},
            ("queued", "job 17 waits (Resources), expected to start 2026-11-22T03:15:02"),
        ),
        (
            {"job": job("PENDING", "PartitionTimeLimit")},
            ("queued", "job 17 waits (PartitionTimeLimit), which does not come by itself"),
        ),
        # queued again, whatever its last attempt left
        (
            {"job": job("PENDING", "BeginTime"), "start": START, "markers": markers(stopped=STOPPED)},
            ("queued", "job 17 waits (BeginTime)"),
        ),
        # running
        ({"job": job("RUNNING", nodes="node[1-2]")}, ("running", "job 17 on node[1-2]: starting")),
        ({"job": job("RUNNING", nodes="node[1-2]"), "start": START}, ("running", "job 17 on node[1-2]")),
        (
            {"job": job("COMPLETING", nodes="node1"), "start": START, "markers": markers(stopped=STOPPED)},
            ("running", "job 17 on node1: completing"),
        ),
        (
            {"job": job("RUNNING", nodes="node1"), "start": START, "is_cancelled": True},
            ("running", "job 17 on node1: being cancelled"),
        ),
        # over
        ({"start": START, "markers": markers(finished=FINISHED), "is_silent": True}, ("finished", "")),
        ({"start": START, "markers": markers(stopped=STOPPED)}, ("stopped", "stopped after step 12 (time limit)")),
        ({"start": START, "job": job("TIMEOUT", "TimeLimit")}, ("failed", "job 17: TIMEOUT (TimeLimit)")),
        ({"start": START, "ends": (end(0), end(1))}, ("failed", "the ranks of job 17 ended without a result")),
        ({"start": START, "state": state(Status.FAILED, "rank 1 died")}, ("failed", "rank 1 died")),
        (
            {"job": job("FAILED", "NonZeroExitCode")},
            ("failed", "job 17 ended before any rank was started: FAILED (NonZeroExitCode)"),
        ),
        (
            {"job": job("COMPLETED"), "refused": "2 attempts made no progress"},
            ("failed", "job 17 ended before any rank was started: 2 attempts made no progress"),
        ),
        # cancelled
        ({"job": job("CANCELLED"), "is_cancelled": True}, ("cancelled", "")),
        (
            {"start": START, "is_cancelled": True, "markers": markers(stopped=STOPPED)},
            ("cancelled", "stopped after step 12"),
        ),
        ({"is_cancelled": True, "is_silent": True}, ("cancelled", "")),
        # nobody can tell
        (
            {"start": START, "is_cancelled": True, "is_silent": True},
            ("unknown", "cancelled, but the scheduler does not answer: its ranks may still run"),
        ),
        ({"is_silent": True}, ("unknown", "the scheduler does not answer: job 17 may be queued")),
        (
            {"submission": NOT_TOLD},
            ("unknown", "sbatch has not answered: it may be queued (fitlaunch resume asks, and sends it once)"),
        ),
        ({}, ("unknown", "the scheduler knows no job 17 any more, and it left no sign")),
        ({"start": START, "is_silent": True}, ("unknown", "the scheduler does not answer: job 17 may be running")),
        (
            {"start": START, "state": state(Status.RUNNING), "ends": (end(0),)},
            ("unknown", "the scheduler knows no job 17 any more, and 1 of 2 nodes left no end"),
        ),
        (
            {"start": START, "markers": markers(stopped=STOPPED), "may_go_on": True, "is_silent": True},
            (
                "unknown",
                "stopped after step 12 (time limit); the scheduler does not answer: it may be queued again",
            ),
        ),
        # handed over again: what an earlier job left says nothing of the newest
        (
            {"submission": AGAIN, "start": START, "state": state(Status.FAILED, "rank 1 died"), "is_silent": True},
            ("unknown", "the scheduler does not answer: job 18 may be queued"),
        ),
    ],
)
def test_how_it_stands(what: dict[str, Any], expected: tuple[str, str]) -> None:
    assert told(**what) == expected


# The scheduler, asked


def submitted(runs_dir: Path, run_id: str, submission: Submission = SENT) -> RunFolder:
    run = write_run_folder(make_launch(runs_dir, run_id=run_id), now_s=1.0)
    write_record(run.submission, submission)
    return run


class Squeue:
    """Answers with these lines, or is silent."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, argv: Any) -> str:
        self.asked.append(tuple(argv))
        if argv[0] == "scontrol":
            return "node1\nnode2\n"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


WAITING = "17\tPENDING\tPriority\t\tN/A\tfitlaunch-run\n18\tRUNNING\tNone\tnode[1-2]\tN/A\tfitlaunch-other\n"


def test_all_runs_are_asked_about_at_once(tmp_path: Path) -> None:
    submitted(tmp_path, "a")
    submitted(tmp_path, "b", AGAIN)
    squeue = Squeue(WAITING)
    runs = list_runs(tmp_path, SlurmQueue(squeue))
    assert [(run.status, run.job_id) for run in runs] == [(Status.QUEUED, "17"), (Status.RUNNING, "18")]
    assert len(squeue.asked) == 1


def test_nobody_asks_where_nothing_was_submitted_or_all_is_done(tmp_path: Path) -> None:
    write_run_folder(make_launch(tmp_path, run_id="local"), now_s=1.0)
    done = submitted(tmp_path, "done")
    write_record(done.attempt_start(1), START)
    write_record(done.finished(1), FINISHED)
    squeue = Squeue()
    queue = SlurmQueue(squeue)
    assert [run.status for run in list_runs(tmp_path, queue)] == [Status.FINISHED, Status.RENDERED]
    assert (squeue.asked, queue.silence) == ([], "")


@pytest.mark.parametrize("error", [SchedulerSilent("no answer"), SchedulerRefused("Invalid user")])
def test_a_scheduler_that_does_not_answer_is_asked_once(tmp_path: Path, error: Exception) -> None:
    submitted(tmp_path, "a")
    submitted(tmp_path, "b", AGAIN)
    queue = SlurmQueue(Squeue(error))
    assert {run.status for run in list_runs(tmp_path, queue)} == {Status.UNKNOWN}
    assert queue.silence == str(error)


def test_a_job_whose_id_sbatch_never_told_is_found_by_its_name(tmp_path: Path) -> None:
    run = submitted(tmp_path, "a", NOT_TOLD)
    over_and_waiting = "16\tFAILED\tNone\t\tN/A\tfitlaunch-run\n" + WAITING
    assert summarise(run, SlurmQueue(Squeue(over_and_waiting))).reason == "job 17 waits (Priority)"


def test_what_follows_a_run_asks_again_when_the_answer_is_old(tmp_path: Path) -> None:
    run = submitted(tmp_path, "a")
    now = [0.0]
    queue = SlurmQueue(Squeue(WAITING, WAITING.replace("PENDING", "RUNNING")), max_age_s=5.0, clock=lambda: now[0])
    assert summarise(run, queue).status is Status.QUEUED
    now[0] = 5.0
    assert summarise(run, queue).status is Status.QUEUED
    now[0] = 5.1
    assert summarise(run, queue).status is Status.RUNNING


def test_the_word_for_a_diagnosis_names_the_nodes(tmp_path: Path) -> None:
    run = submitted(tmp_path, "a", AGAIN)
    word = SlurmQueue(Squeue(WAITING)).word(run)
    assert word is not None
    assert (word.job_id, word.state, word.nodes) == ("18", "RUNNING", ("node1", "node2"))
    assert SlurmQueue(Squeue("")).word(run) is None
    assert SlurmQueue(Squeue()).word(write_run_folder(make_launch(tmp_path, run_id="c"), now_s=1.0)) is None


# Screens


ENDED = "17\tFAILED\tNonZeroExitCode\tnode[1-2]\tN/A\tfitlaunch-run\n18\tPENDING\tPriority\t\tN/A\tfitlaunch-other\n"


def screen(show: Callable[[Console], None]) -> str:
    out = io.StringIO()
    show(make_console(out))
    return out.getvalue()


def test_runs_in_a_queue(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    submitted(tmp_path, "20261122-031502-a")
    submitted(tmp_path, "20261122-041502-b", AGAIN)
    for name, answer in (("ls-queue", ENDED), ("ls-silence", SchedulerSilent("Unable to contact slurm controller"))):
        queue = SlurmQueue(Squeue(answer))
        runs = list_runs(tmp_path, queue)
        golden(
            f"report/{name}.txt",
            screen(lambda console, runs=runs, queue=queue: show_runs(runs, tmp_path, console, silence=queue.silence)),  # type: ignore[misc]
        )


def test_a_run_that_failed_before_any_rank_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, str], None]
) -> None:
    """Only the job's own output tells: here a line of the site's set-up."""
    monkeypatch.chdir(tmp_path)
    run = submitted(tmp_path / "runs", "run")
    (run.root / "slurm-17.out").write_text("/var/spool/job17/slurm_script: line 14: module: command not found\n")
    queue = SlurmQueue(Squeue(ENDED))
    stands = summarise(run, queue)
    found = failure_of(run, stands, queue.word(run))
    assert found is not None
    assert found.log_tail == ("/var/spool/job17/slurm_script: line 14: module: command not found",)
    assert not (run.root / "attempts").exists()
    golden("report/status-no-attempt.txt", screen(lambda console: show_status(stands, console, found)))


def test_a_run_whose_worker_died_on_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, str], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = submitted(tmp_path / "runs", "run")
    write_record(run.job, dataclasses.replace(read_job(run.job), nodes=2))
    write_record(run.attempt_start(1), START)
    deaths = {0: RankDeath(rank=0, seen_at_s=1024.0, exit_code=1), 1: RankDeath(rank=2, seen_at_s=1023.0, exit_code=-9)}
    for node, death in deaths.items():
        write_record(run.node_end(1, node), dataclasses.replace(end(node), deaths=(death,), oom_kills=node))
    peer = Failed(
        attempt=1, time_s=1023.5, rank=0, host="node1", error_type="RuntimeError",
        message="Connection closed by peer [10.0.0.2]:6052", traceback="",
    )  # fmt: skip
    write_record(run.failed(1, 0), peer)
    queue = SlurmQueue(Squeue(ENDED))
    stands = summarise(run, queue)
    golden(
        "report/status-failed-node.txt",
        screen(lambda console: show_status(stands, console, failure_of(run, stands, queue.word(run)))),
    )
