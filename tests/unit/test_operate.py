"""Follow, cancel and resume, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import InputError, SubmitError
from launcher.operate.cancel import SlurmCancel
from launcher.operate.follow import LogFollower, follow
from launcher.operate.resume import check_resumable
from launcher.runs.layout import RunFolder
from launcher.runs.records import (
    AttemptStart,
    Manifest,
    NodeEnd,
    RankPlace,
    Status,
    Stopped,
    Submission,
    write_record,
)
from launcher.runs.registry import RunSummary
from launcher.scheduler.client import SchedulerSilent
from launcher.targets.folder import write_run_folder
from tests.launching import make_launch
from tests.markers import STARTED

SENT = Submission(number=1, cluster="slurm", job_name="fitlaunch-run", time_s=1.0, job_id="17")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run_folder(make_launch(tmp_path, run_id="run"), now_s=1.0)


def summary(status: Status, reason: str = "", attempt: int = 1) -> RunSummary:
    return RunSummary(
        run_id="run", run_dir=Path("run"), status=status, attempt=attempt, created_at_s=1.0, exit_code=None,
        reason=reason,
    )  # fmt: skip


def start_attempt(run: RunFolder, attempt: int, *, submission: int = 1) -> None:
    start = AttemptStart(
        attempt=attempt, time_s=2.0, head="node1", port=20_000, num_nodes=1, submission=submission, job_id="17"
    )
    write_record(run.attempt_start(attempt), start)


def write_log(run: RunFolder, attempt: int, node: int, rank: int, text: str) -> Path:
    write_record(run.node_ranks(attempt, node), (RankPlace(rank=rank, local_rank=0, pid=1),))
    log = run.logs(attempt, node) / "x" / "attempt_0" / "0" / "stderr.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return log


# Follow


class Listener:
    """What a follower copied and said."""

    def __init__(self) -> None:
        self.copied = b""
        self.said: list[str] = []

    def follower(self, run: RunFolder, rank: int | None) -> LogFollower:
        return LogFollower(run=run, rank=rank, write=self.write, say=self.said.append)

    def write(self, content: bytes) -> None:
        self.copied += content


def test_a_rank_is_followed_over_attempts_wherever_it_runs(run: RunFolder) -> None:
    """In the second attempt rank 1 runs on another node."""
    heard = Listener()

    def story() -> Iterator[tuple[RunSummary, bool]]:
        yield summary(Status.QUEUED, "job 17 waits (Priority)"), False
        yield summary(Status.QUEUED, "job 17 waits (Priority)"), False
        start_attempt(run, 1)
        log = write_log(run, 1, 1, 1, "first\n")
        yield summary(Status.RUNNING), False
        with log.open("a") as file:
            file.write("its last words\n")
        start_attempt(run, 2)
        write_log(run, 2, 0, 1, "second\n")
        yield summary(Status.UNKNOWN, "the scheduler does not answer"), True
        yield summary(Status.FINISHED), False

    told = story()
    follow(heard.follower(run, 1), lambda: next(told), poll_s=0.0)
    assert heard.copied == b"first\nits last words\nsecond\n"
    assert heard.said == [
        "queued: job 17 waits (Priority)",
        "unknown: the scheduler does not answer",
        "attempt 2",
    ]


def test_a_run_that_nobody_knows_any_more_is_not_followed_for_ever(run: RunFolder) -> None:
    follow(Listener().follower(run, 0), lambda: (summary(Status.UNKNOWN), False), poll_s=0.0)


def test_without_a_rank_the_job_itself_has_the_word_until_a_rank_has(run: RunFolder) -> None:
    heard = Listener()
    follower = heard.follower(run, None)
    (run.root / "slurm-17.out").write_text("srun: error\n")
    follower.step()
    start_attempt(run, 1)
    agent = run.logs(1, 0) / "launcher.log"
    agent.parent.mkdir(parents=True)
    agent.write_text("torchrun says\n")
    follower.step()
    assert heard.copied == b"srun: error\ntorchrun says\n"
    write_log(run, 1, 0, 0, "rank 0 says\n")
    follower.step()
    assert heard.copied == b"srun: error\ntorchrun says\nrank 0 says\n"


# Resume


def test_what_it_goes_on_from(run: RunFolder) -> None:
    assert check_resumable(run, summary(Status.RENDERED, attempt=0), None) == "starting it"
    start_attempt(run, 1)
    assert check_resumable(run, summary(Status.FAILED), None) == "starting again: it has no complete checkpoint"
    checkpoint(run)
    assert check_resumable(run, summary(Status.STOPPED), SENT) == "going on after step 12"


def checkpoint(run: RunFolder, **other: Any) -> None:
    known: dict[str, Any] = {
        "run_id": "run", "attempt": 1, "step": 12, "world_size": 2, "shard": "ddp", "method": "lora",
        "plan_hash": "x", "files": (),
    }  # fmt: skip
    write_record(run.checkpoints / "checkpoint-12" / "manifest.json", Manifest(**{**known, **other}))


@pytest.mark.parametrize(
    ("status", "submission", "rule"),
    [
        (Status.FINISHED, None, "is finished"),
        (Status.RUNNING, None, "is running already"),
        (Status.QUEUED, SENT, "is queued already"),
    ],
)
def test_what_has_no_need_to_go_on(run: RunFolder, status: Status, submission: Submission | None, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        check_resumable(run, summary(status), submission)


def test_a_job_whose_id_nobody_heard_may_be_resumed(run: RunFolder) -> None:
    """It is then looked for, and not queued twice."""
    unheard = Submission(number=1, cluster="slurm", job_name="fitlaunch-run", time_s=1.0)
    assert check_resumable(run, summary(Status.QUEUED, attempt=0), unheard) == "starting it"


@pytest.mark.parametrize(
    "other", [{"world_size": 4}, {"shard": "zero3"}, {"method": "full"}, {"run_id": "another"}], ids=str
)
def test_a_checkpoint_that_is_not_this_jobs_is_refused_before_anything_is_queued(
    run: RunFolder, other: dict[str, Any]
) -> None:
    start_attempt(run, 1)
    checkpoint(run, **other)
    with pytest.raises(InputError, match=r"cannot go on from checkpoint-12, which was saved with"):
        check_resumable(run, summary(Status.STOPPED), None)


def test_a_plan_that_changed_is_refused(run: RunFolder) -> None:
    run.job.write_text(run.job.read_text() + " ")
    with pytest.raises(SubmitError, match="changed after it was rendered"):
        check_resumable(run, summary(Status.STOPPED), None)


# Cancel


class Slurm:
    """A scheduler with one job: what it says of it, one answer after the other; the last for good."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.cancelled: list[str] = []

    def __call__(self, argv: Any) -> str:
        if argv[0] == "scancel":
            self.cancelled.append(argv[1])
            self.states = ["CANCELLED"]
            return ""
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state == "silent":
            raise SchedulerSilent("no answer")
        return f"17\t{state}\tNone\tnode1\tN/A\tfitlaunch-run\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.operate.follow.STATUS_PERIOD_S", 0.0)
    monkeypatch.setattr("launcher.operate.cancel.POLL_S", 0.01)
    monkeypatch.setattr("launcher.operate.cancel.SEEN_S", 0.1)


def cancel(run: RunFolder, slurm: Slurm, *, grace_s: float = 5.0) -> tuple[Status, tuple[str, ...], str, list[str]]:
    said: list[str] = []
    done = SlurmCancel(run, said.append, grace_s=grace_s, slurm=slurm).carry_out()
    return done.summary.status, done.proof, done.unproven, said


NODE_END = NodeEnd(attempt=1, node_rank=0, host="node1", started_at_s=1.0, ended_at_s=2.0, exit_code=0, deaths=())


def test_a_job_in_the_queue_is_cancelled_at_once(run: RunFolder) -> None:
    write_record(run.submission, SENT)
    slurm = Slurm("PENDING")
    assert cancel(run, slurm) == (
        Status.CANCELLED,
        ("job 17 is over", "no attempt was ever started"),
        "",
        ["cancelling job 17"],
    )
    assert slurm.cancelled == ["17"]
    assert run.cancelled.exists()


def test_ranks_that_have_something_to_save_are_asked_first(run: RunFolder) -> None:
    write_record(run.submission, SENT)
    start_attempt(run, 1)
    write_record(run.started(1), STARTED)

    class Stopping(Slurm):
        """The ranks stop when they are asked, and the job ends by itself."""

        def __call__(self, argv: Any) -> str:
            if run.stop_file(1).exists() and not run.stopped(1).exists():
                stopped = Stopped(attempt=1, time_s=1.0, step=3, cause="cancel", checkpoint=None)
                write_record(run.stopped(1), stopped)
                write_record(run.node_end(1, 0), NODE_END)
                self.states = ["COMPLETED"]
            return super().__call__(argv)

    slurm = Stopping("RUNNING")
    status, proof, unproven, said = cancel(run, slurm)
    assert (status, unproven, slurm.cancelled) == (Status.CANCELLED, "", [])
    assert proof == ("job 17 is over", "the ranks of attempt 1 have ended, as its 1 node says")
    assert said == ["asking run (job 17) to save and stop"]


def test_ranks_that_do_not_stop_are_ended_after_the_grace_and_what_is_not_proven_is_said(run: RunFolder) -> None:
    write_record(run.submission, SENT)
    start_attempt(run, 1)
    write_record(run.started(1), STARTED)
    slurm = Slurm("RUNNING")
    status, proof, unproven, _ = cancel(run, slurm, grace_s=0.05)
    assert (status, slurm.cancelled, proof) == (Status.CANCELLED, ["17"], ("job 17 is over",))
    assert unproven == "of attempt 1, 1 of 1 node has not said how its ranks ended"


def test_a_silent_scheduler_leaves_the_run_marked(run: RunFolder) -> None:
    write_record(run.submission, SENT)
    with pytest.raises(SchedulerSilent, match="starts no further attempt; run fitlaunch cancel again"):
        cancel(run, Slurm("silent"))
    assert run.cancelled.exists()


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT"])
def test_what_is_over_is_not_cancelled(run: RunFolder, state: str) -> None:
    write_record(run.submission, SENT)
    start_attempt(run, 1)
    with pytest.raises(InputError, match="is not running: it is failed"):
        cancel(run, Slurm(state))
    assert not run.cancelled.exists()
