"""What an agent decides before anything is started on its node, and after everything has ended. Pure parts."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launcher.node.address as address_module
from launcher.node.address import LOOPBACK, interface_of, node_address
from launcher.node.admission import Circumstances, Refusal, refusal
from launcher.node.claim import Claim, claim
from launcher.node.environment import belongs_to, is_of_earlier_attempt, rank_environment, with_network, with_threads
from launcher.node.fields import NodeFields, fill
from launcher.node.job import SchedulerJob, scheduler_job
from launcher.node.leash import SILENCE_S, LauncherGone, Leash
from launcher.node.requeue import decide
from launcher.render.types import NODE_FIELDS
from launcher.runs.layout import RunFolder
from launcher.runs.processes import this_process
from launcher.runs.records import AttemptStart, Stopped, Submission, write_record
from launcher.runs.stopping import CANCEL, TIME_LIMIT
from tests.faults.agents import SLURM
from tests.launching import make_launch

FIELDS = NodeFields(node_rank=1, head="node0", port=12_345, address="10.0.0.2", rendezvous="17_3-2")
HEAD = dataclasses.replace(FIELDS, node_rank=0)


def test_every_field_is_filled_in() -> None:
    assert fill(NODE_FIELDS, FIELDS) == ("1", "node0", "12345", "10.0.0.2", "0", "17_3-2")
    assert fill(("--rdzv-conf=is_host={is_head},join_timeout=900", "--rdzv-endpoint={head}:{port}"), HEAD) == (
        "--rdzv-conf=is_host=1,join_timeout=900",
        "--rdzv-endpoint=node0:12345",
    )


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="{}"))))
def test_other_words_stay_as_they_are(words: list[str]) -> None:
    assert fill(words, FIELDS) == tuple(words)


def test_what_a_value_holds_is_not_looked_at_again() -> None:
    assert fill(("{head}",), dataclasses.replace(FIELDS, head="{port}")) == ("{port}",)


START = AttemptStart(attempt=1, time_s=1.0, head="node0", port=1, num_nodes=2, submission=1, job_id="17")
FOUND = Circumstances(
    attempt=1,
    submission=1,
    job_id="17",
    owner="17",
    is_cancelled=False,
    superseded_by=None,
    finished_by=None,
    before=(),
    max_attempts=3,
    checkpoint_attempt=None,
)


def starts(*numbers: int) -> tuple[AttemptStart, ...]:
    return tuple(dataclasses.replace(START, attempt=number) for number in numbers)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"is_cancelled": True}, ("the run was cancelled; fitlaunch resume starts it again", 0)),
        ({"owner": "18"}, ("submission 1 belongs to job 18; this is job 17", 0)),
        ({"superseded_by": 4}, ("superseded by attempt 4", 0)),
        ({"finished_by": 1}, ("attempt 1 has finished the run", 0)),
        ({"attempt": 3, "before": starts(1, 2), "checkpoint_attempt": 1}, None),
        ({"attempt": 3, "before": starts(1, 2), "checkpoint_attempt": 2}, None),
        (
            {"attempt": 3, "before": starts(1, 2)},
            ("attempts 1 and 2 ended without a new checkpoint, and another would as well", 5),
        ),
        (
            {"attempt": 5, "before": starts(3, 4), "checkpoint_attempt": 2},
            ("attempts 3 and 4 ended without a new checkpoint, and another would as well", 5),
        ),
        (
            {"attempt": 4, "before": starts(1, 2, 3), "checkpoint_attempt": 3},
            ("it was started 3 times, which is all that cluster.max_attempts allows", 5),
        ),
        # without a scheduler every start is a person's
        ({"submission": None, "job_id": None, "owner": None, "attempt": 3, "before": starts(1, 2)}, None),
    ],
)
def test_which_starts_are_refused(changes: dict[str, Any], expected: tuple[str, int] | None) -> None:
    found = refusal(dataclasses.replace(FOUND, **changes))
    assert found == (None if expected is None else Refusal(reason=expected[0], exit_code=expected[1]))


STOPPED = Stopped(attempt=1, time_s=1.0, step=20, cause=TIME_LIMIT, checkpoint="checkpoint-20")
AT_THE_END: dict[str, Any] = {"num_attempts": 1, "step_before": 10, "step_now": 20, "is_cancelled": False}


@pytest.mark.parametrize(
    ("cause", "changes", "expected"),
    [
        (TIME_LIMIT, {}, (True, "it goes on after step 20")),
        ("SIGUSR1", {"step_before": None}, (True, "it goes on after step 20")),
        ("SIGTERM", {}, (False, "it was stopped by SIGTERM, not at its time limit")),
        (CANCEL, {}, (False, "it was stopped by cancel, not at its time limit")),
        (None, {}, (False, "the ranks did not stop in order")),
        (TIME_LIMIT, {"is_cancelled": True}, (False, "the run was cancelled")),
        (TIME_LIMIT, {"step_now": 10}, (False, "it saved no new checkpoint, and would end here again")),
        (
            TIME_LIMIT,
            {"step_now": None, "step_before": None},
            (False, "it saved no new checkpoint, and would end here again"),
        ),
        (TIME_LIMIT, {"num_attempts": 10}, (False, "this was the last of 10 attempts (cluster.max_attempts)")),
    ],
)
def test_which_jobs_are_queued_again(cause: str | None, changes: dict[str, Any], expected: tuple[bool, str]) -> None:
    stopped = None if cause is None else dataclasses.replace(STOPPED, cause=cause)
    found = decide(stopped, SLURM, **AT_THE_END | changes)
    assert (found.is_due, found.why) == expected


def test_nothing_is_queued_again_where_that_is_not_wanted() -> None:
    found = decide(STOPPED, dataclasses.replace(SLURM, requeue=False), **AT_THE_END)
    assert (found.is_due, found.why) == (False, "cluster.requeue=false")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, SchedulerJob(job_id="17", restart_count=0)),
        ({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"}, SchedulerJob(job_id="17", restart_count=2)),
        # the last element of an array has the id of the whole array
        (
            {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"},
            SchedulerJob(job_id="17_3", restart_count=0),
        ),
    ],
)
def test_the_job_of_this_process(environ: dict[str, str], expected: SchedulerJob | None) -> None:
    assert scheduler_job(environ) == expected


def test_the_first_job_holds_a_submission(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert claim(run, "17") == Claim(submission=1, owner="17")
    assert claim(run, "18") == Claim(submission=1, owner="17")
    submission = Submission(number=2, cluster="slurm", job_name="fitlaunch-run", time_s=1.0)
    write_record(run.submission, submission)
    assert claim(run, "18") == Claim(submission=2, owner="18")
    assert claim(run, "17") == Claim(submission=1, owner="17")  # requeued: it meets its own claim
    assert sorted(path.name for path in run.cancelled.parent.iterdir()) == ["job-1", "job-2"]


def test_the_ranks_environment_says_where_they_are(tmp_path: Path) -> None:
    launch = make_launch(tmp_path)
    environment = rank_environment(
        launch, {"PATH": "/bin", "RANK": "3", "FITLAUNCH_LEASE": "/x"}, attempt=2, node=1, job_id="17"
    )
    own = {name: value for name, value in environment.items() if name not in launch.env}
    assert own == {
        "PATH": "/bin",
        "FITLAUNCH_ATTEMPT": "2",
        "FITLAUNCH_NODE": "1",
        "FITLAUNCH_PLAN_HASH": launch.hash,
        "FITLAUNCH_LAUNCHER": str(this_process()),
        "FITLAUNCH_JOB_ID": "17",
    }
    assert belongs_to(2, 1)(environment)
    assert not belongs_to(2, 0)(environment)
    assert is_of_earlier_attempt(3)(environment)
    assert not is_of_earlier_attempt(2)(environment)
    assert not is_of_earlier_attempt(2)({})


def test_gloo_gets_the_interface_of_this_nodes_address_unless_one_was_chosen() -> None:
    assert with_network({}, LOOPBACK) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert with_network({"GLOO_SOCKET_IFNAME": "ib0"}, LOOPBACK) == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert with_network({}, "192.0.2.1") == {}


def test_each_rank_gets_its_share_of_the_cores(tmp_path: Path) -> None:
    launch = dataclasses.replace(make_launch(tmp_path), env={})
    num_cores = len(os.sched_getaffinity(0))
    assert with_threads({}, launch, 1) == {"OMP_NUM_THREADS": str(num_cores)}
    assert with_threads({}, launch, 2 * num_cores) == {"OMP_NUM_THREADS": "1"}
    planned = dataclasses.replace(launch, env={"OMP_NUM_THREADS": "7"})
    assert with_threads({"OMP_NUM_THREADS": "7"}, planned, 1) == {"OMP_NUM_THREADS": "7"}


@pytest.fixture
def two_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [("lo", LOOPBACK), ("eth0", "10.0.0.7"), ("ib0", "10.1.0.7")]
    monkeypatch.setattr(address_module, "_addresses", lambda: addresses)


@pytest.mark.parametrize(
    ("head", "route", "interface", "expected"),
    [
        ("node0", "10.0.0.7", None, "10.0.0.7"),
        ("node0", "10.0.0.7", "ib0", "10.1.0.7"),
        # on the head itself, whose own name Debian's /etc/hosts gives as 127.0.1.1
        ("node0", "127.0.0.1", None, "10.0.0.7"),
        ("127.0.0.1", "127.0.0.1", None, "127.0.0.1"),
        ("localhost", "127.0.0.1", None, "127.0.0.1"),
    ],
)
def test_the_address_that_the_other_nodes_reach(
    two_interfaces: None,
    monkeypatch: pytest.MonkeyPatch,
    head: str,
    route: str,
    interface: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr(address_module, "_route_to", lambda host: route)
    assert node_address(head, interface) == expected


def test_an_interface_without_an_address_is_named(two_interfaces: None) -> None:
    with pytest.raises(OSError, match=r"cluster\.network_interface=ib7 has no IPv4 address on "):
        node_address("node0", "ib7")


def test_the_route_is_the_kernels() -> None:
    assert node_address(LOOPBACK, None) == LOOPBACK
    assert interface_of(LOOPBACK) == "lo"
    assert interface_of("192.0.2.1") is None
    with pytest.raises(socket.gaierror):
        node_address("no-such-host.invalid", None)


@pytest.fixture
def pipe() -> Iterator[tuple[io.BufferedReader, int]]:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader:
        yield reader, write


def wait_for_loss(leash: Leash) -> str:
    end = time.monotonic() + 5
    while not leash.loss() and time.monotonic() < end:
        time.sleep(0.01)
    return leash.loss()


def test_the_launcher_says_the_environment_and_stays(
    pipe: tuple[io.BufferedReader, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    os.write(writer, json.dumps({"HF_TOKEN": "a\nb"}).encode() + b"\n\n")
    leash = Leash(reader)
    assert leash.environment == {"HF_TOKEN": "a\nb"}
    assert leash.loss() == ""
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + SILENCE_S + 1)
    assert leash.loss() == f"nothing was heard of the launcher for {SILENCE_S + 1:.0f} s"
    monkeypatch.undo()
    os.close(writer)
    assert wait_for_loss(leash) == "the launcher is gone"


@pytest.mark.parametrize("text", [b"", b'{"A": "1"}', b"no json\n", b'["A"]\n'])
def test_a_launcher_that_does_not_say_it_starts_nothing(pipe: tuple[io.BufferedReader, int], text: bytes) -> None:
    reader, writer = pipe
    os.write(writer, text)
    os.close(writer)
    with pytest.raises(LauncherGone):
        Leash(reader)


def test_a_signal_is_no_cause_to_go_on_but_one() -> None:
    """Slurm sends TERM for a cancel as for a preemption; only USR1 is ours."""
    causes = [number.name for number in signal.Signals]
    due = [cause for cause in causes if decide(dataclasses.replace(STOPPED, cause=cause), SLURM, **AT_THE_END).is_due]
    assert due == ["SIGUSR1"]
