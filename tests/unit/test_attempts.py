"""Which attempts count, who may still write, how a stop is asked for, and which checkpoint is the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.fence import Fence, Superseded
from jobs.watch import LEASE_S, Lease
from launcher.runs.attempts import accepted_attempts, attempt_numbers, last_attempt, next_attempt, superseded_by
from launcher.runs.checkpoints import difference_to, newest_checkpoint
from launcher.runs.layout import RunFolder
from launcher.runs.logs import log_tail, rank_logs
from launcher.runs.records import AttemptStart, Manifest, RankPlace, write_record
from launcher.runs.stopping import CANCEL, TIME_LIMIT, ask_to_stop, stop_cause
from tests.launching import make_spec


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def begin(run: RunFolder, attempt: int) -> None:
    """The folder alone, as the batch script makes it."""
    run.attempt(attempt).mkdir(parents=True)


def accept(run: RunFolder, attempt: int, submission: int | None = 1) -> AttemptStart:
    start = AttemptStart(attempt=attempt, time_s=1.0, head="h", port=1, num_nodes=2, submission=submission)
    write_record(run.attempt_start(attempt), start)
    return start


def test_a_run_that_was_never_started(run: RunFolder) -> None:
    assert (attempt_numbers(run), last_attempt(run), next_attempt(run)) == ((), 0, 1)
    assert superseded_by(run, 0) is None


def test_a_refused_attempt_neither_counts_nor_fences_off_another(run: RunFolder) -> None:
    accept(run, 1)
    begin(run, 2)
    assert superseded_by(run, 1) is None  # nobody knows yet whether the second may run
    run.refused(2).write_text("no\n")
    assert (attempt_numbers(run), last_attempt(run), next_attempt(run)) == ((1, 2), 1, 3)
    assert superseded_by(run, 1) is None
    accept(run, 10)
    assert (superseded_by(run, 1), superseded_by(run, 10), last_attempt(run)) == (10, None, 10)


def test_attempts_are_counted_by_submission(run: RunFolder) -> None:
    by_hand, first, second = accept(run, 1, None), accept(run, 2, 1), accept(run, 11, 1)
    begin(run, 12)
    assert accepted_attempts(run, submission=None) == (by_hand,)
    assert accepted_attempts(run, submission=1) == (first, second)
    assert accepted_attempts(run, submission=2) == ()


def test_the_fence(run: RunFolder) -> None:
    accept(run, 1)
    fence = Fence(run=run, attempt=1)
    fence.check()
    assert not fence.is_down()
    accept(run, 3)
    assert fence.is_down()
    with pytest.raises(Superseded, match="attempt 1 was superseded by attempt 3: it writes nothing more"):
        fence.check()


def test_who_asks_first_says_why(run: RunFolder) -> None:
    assert stop_cause(run, 1) is None
    assert ask_to_stop(run, 1, TIME_LIMIT)
    assert not ask_to_stop(run, 1, CANCEL)
    assert (stop_cause(run, 1), stop_cause(run, 2)) == (TIME_LIMIT, None)
    assert [path.name for path in run.stop_file(1).parent.iterdir()] == ["stop-1"]


def test_a_lease_ends_by_the_ranks_own_clock(tmp_path: Path) -> None:
    now_s = 0.0
    path = tmp_path / "lease-1"
    path.write_text("1")
    lease = Lease(path, lambda: now_s)
    assert lease.is_held()
    now_s = LEASE_S - 1
    assert lease.is_held()
    path.write_text("2")
    assert lease.is_held()
    now_s = 2 * LEASE_S - 2
    assert lease.is_held()
    path.unlink()  # the launcher takes it away when it is done
    assert lease.is_held()
    now_s = 2 * LEASE_S
    assert not lease.is_held()


def manifest(step: int, attempt: int = 1) -> Manifest:
    return Manifest(
        run_id="run", attempt=attempt, step=step, world_size=2, shard="ddp", method="lora", plan_hash="0", files=()
    )


def test_the_newest_checkpoint_has_a_manifest(run: RunFolder) -> None:
    assert newest_checkpoint(run) is None
    for step in (9, 10):
        write_record(run.checkpoints / f"checkpoint-{step}" / "manifest.json", manifest(step))
    (run.checkpoints / "checkpoint-11").mkdir()
    (run.checkpoints / "checkpoint-12").mkdir()
    (run.checkpoints / "checkpoint-12" / "manifest.json").write_text('{"run_id"')
    assert newest_checkpoint(run) == manifest(10)


def test_what_cannot_be_resumed_is_known_from_the_manifest_alone() -> None:
    spec = make_spec()
    assert difference_to(manifest(3), run_id="run", spec=spec) is None
    assert difference_to(manifest(3), run_id="run", spec=make_spec(gpus=4)) == (
        "was saved with world size 2, and this job has world size 4"
    )
    assert difference_to(manifest(3), run_id="other", spec=spec) == (
        "was saved with run run, and this job has run other"
    )


def write_log(run: RunFolder, node: int, local_rank: int, text: str) -> Path:
    path = run.logs(1, node) / "id_x" / "attempt_0" / str(local_rank) / "stderr.log"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_a_ranks_log_is_on_the_node_where_it_was_seen(run: RunFolder) -> None:
    """torchrun does not number the ranks by node, and names their logs by local rank."""
    first, second = write_log(run, 0, 0, "of node 0\n"), write_log(run, 1, 0, "of node 1\n")
    write_record(run.node_ranks(1, 0), (RankPlace(rank=1, local_rank=0, pid=7),))
    write_record(run.node_ranks(1, 1), (RankPlace(rank=0, local_rank=0, pid=7),))
    assert rank_logs(run, 1, 0) == (second,)
    assert rank_logs(run, 1, 1) == (first,)
    assert rank_logs(run, 1, 2) == ()
    assert log_tail(run, 1, 0) == ("of node 1",)


def test_on_a_single_node_ranks_need_not_have_been_seen(run: RunFolder) -> None:
    log = write_log(run, 0, 1, "text\n")
    assert rank_logs(run, 1, 1) == (log,)
