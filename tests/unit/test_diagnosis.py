"""Who failed first, from what ranks, agents and the scheduler left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launcher.runs.diagnosis.diagnose import diagnose
from launcher.runs.diagnosis.read import diagnose_attempt, read_diagnosis
from launcher.runs.diagnosis.types import Diagnosis, Evidence, Kind, SchedulerWord
from launcher.runs.layout import RunFolder
from launcher.runs.records import Failed, NodeEnd, RankDeath, Status, write_record
from tests.report_fixtures import run_folder, spec

SAMPLES = Path(__file__).parents[1] / "fixtures" / "failures"
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6052."
WAITED = "[/pytorch/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation to complete"
RAN_OUT = (SAMPLES / "cuda-out-of-memory-torch.txt").read_text().partition(": ")[2]


def note(rank: int, time_s: float, message: str = GLOO, error_type: str = "RuntimeError", **more: Any) -> Failed:
    more = {"host": "alpha"} | more
    return Failed(attempt=1, time_s=time_s, rank=rank, error_type=error_type, message=message, traceback="", **more)


def end(node: int, *deaths: tuple[int, float, int | None], host: str = "", oom_kills: int | None = 0) -> NodeEnd:
    return NodeEnd(
        attempt=1,
        node_rank=node,
        host=host or ("alpha", "beta", "gamma")[node],
        started_at_s=0.0,
        ended_at_s=100.0,
        exit_code=1,
        deaths=tuple(RankDeath(rank=rank, seen_at_s=seen_s, exit_code=code) for rank, seen_s, code in deaths),
        oom_kills=oom_kills,
    )


def word(state: str, reason: str = "None") -> SchedulerWord:
    return SchedulerWord(job_id="17", state=state, reason=reason, nodes=("alpha", "beta"))


def one_node(failures: list[Failed], *deaths: tuple[int, float, int | None], **more: Any) -> Diagnosis:
    ended = (end(0, *deaths, oom_kills=more.pop("oom_kills", 0)),)
    return diagnose(Evidence(attempt=1, world_size=2, failures=tuple(failures), ends=ended, **more), run="run")


def two_nodes(failures: list[Failed], *ends: NodeEnd, **more: Any) -> Diagnosis:
    more = {"hosts": ("alpha", "beta"), "present": frozenset({0, 1})} | more
    return diagnose(Evidence(attempt=1, world_size=4, failures=tuple(failures), ends=ends, **more), run="run")


KILLED = "was killed by SIGKILL, which is also what the kernel does when the host is out of memory (see dmesg)"


@pytest.mark.parametrize(
    ("failures", "deaths", "expected"),
    [
        # a rank that raised; its peer noticed
        (
            [note(0, 10.4), note(1, 10.1, "the stub\nfailed", "ValueError")],
            [(1, 10.6, 1)],
            ("rank 1 failed with ValueError: the stub", 1, (0,)),
        ),
        # the same, but the peer was faster: who only lost a peer is no cause
        (
            [note(0, 10.1), note(1, 10.4, "the stub", "ValueError")],
            [(1, 10.6, 1)],
            ("rank 1 failed with ValueError: the stub", 1, (0,)),
        ),
        # a rank that was killed; its peer wrote a note before anybody noticed the death
        ([note(0, 10.1)], [(1, 10.3, -9)], (f"rank 1 {KILLED}", 1, (0,))),
        # a rank that raised; its peer hung and was killed by the program above half a minute later
        (
            [note(0, 10.1, "boom", "ValueError")],
            [(0, 10.2, 1), (1, 40.3, -9)],
            ("rank 0 failed with ValueError: boom", 0, (1,)),
        ),
        # nobody but victims; the peer was killed with the rest, too late to be why
        (
            [note(0, 10.1)],
            [(0, 10.2, 1), (1, 40.3, -9)],
            (f"rank 0 failed with RuntimeError: {GLOO}", 0, (1,)),
        ),
        # TERM is how the others are told to end
        ([note(0, 10.1)], [(1, 10.1, -15)], (f"rank 0 failed with RuntimeError: {GLOO}", 0, ())),
        # a rank that had ended well is no cause
        ([note(0, 10.1)], [(1, 5.0, 0)], (f"rank 0 failed with RuntimeError: {GLOO}", 0, ())),
        # nobody wrote anything
        ([], [(0, 9.0, -15), (1, 10.3, -11)], ("rank 1 was killed by SIGSEGV", 1, ())),
        ([], [(0, 9.0, 70), (1, 10.3, 1)], ("rank 1 ended with exit code 1", 1, (0,))),
        ([], [(0, 9.0, 70), (1, 10.3, 70)], ("rank 0 ended with exit code 70: launcher gone", 0, (1,))),
        ([note(0, 1.0, "", "KeyboardInterrupt")], [], ("rank 0 failed with KeyboardInterrupt", 0, ())),
    ],
)
def test_on_one_node(failures: list[Failed], deaths: list[Any], expected: tuple[str, int, tuple[int, ...]]) -> None:
    found = one_node(failures, *deaths)
    assert (found.what, found.rank, found.victims) == expected


def test_nobody_says_anything() -> None:
    found = one_node([], (0, 9.0, None), otherwise="torch.distributed.run ended with exit code 1")
    text = "the ranks ended without a result; torch.distributed.run ended with exit code 1"
    assert (found.kind, found.what, found.rank) == (Kind.UNKNOWN, text, None)
    assert one_node([]).what == "the ranks ended without a result"


# Memory


def test_a_gpu_that_ran_out_is_told_in_numbers_with_its_phase() -> None:
    failures = [
        note(1, 10.0, RAN_OUT, "OutOfMemoryError", phase="backward", step=3),
        note(0, 9.9, "NCCL error, remote process exited or there was a network error", "DistBackendError"),
    ]
    found = one_node(failures, planned_bytes=30 << 30)
    assert (found.kind, found.rank, found.phase, found.step) == (Kind.CUDA_OUT_OF_MEMORY, 1, "backward", 3)
    assert found.what == (
        "rank 1 ran out of GPU memory in backward at step 3: "
        "it asked for 22.78 GiB more with 18.73 GiB of 31.47 GiB in use"
    )
    assert found.memory is not None
    assert found.memory.planned_bytes == 30 << 30
    assert found.because == ("rank 0 lost it (connection lost): a victim, not a cause",)


def test_nccl_that_cannot_have_its_buffers_is_no_victim() -> None:
    text = (SAMPLES / "cuda-out-of-memory-nccl.txt").read_text().replace("[rank5]: ", "")
    found = one_node([note(1, 10.0, text.partition(": ")[2], "DistBackendError")])
    assert found.kind is Kind.CUDA_OUT_OF_MEMORY


@pytest.mark.parametrize(
    "told",
    [
        {"oom_kills": 1},
        {"word": word("OUT_OF_MEMORY")},
        {"agent_texts": {0: (SAMPLES / "killed-by-the-kernel-out-of-memory-slurmstepd.txt").read_text() + "bye\n"}},
    ],
    ids=["cgroup", "scheduler", "slurmstepd"],
)
def test_a_rank_that_the_kernel_killed(told: dict[str, Any]) -> None:
    found = one_node([note(0, 10.1)], (1, 10.3, -9), **told)
    assert (found.kind, found.rank) == (Kind.KERNEL_OUT_OF_MEMORY, 1)
    assert found.what == "rank 1 was killed by the kernel: the node had no more memory for the job"
    assert any("cluster.mem=" in line for line in found.advice)
    assert ("counts 1 killed" in found.because[0]) is ("oom_kills" in told)


def test_another_nodes_counter_does_not_count() -> None:
    found = two_nodes([], end(0, (0, 10.0, -15), oom_kills=3), end(1, (2, 9.0, -9)))
    assert (found.kind, found.host) == (Kind.SIGNAL, "beta")


def test_a_bus_error_is_a_full_shared_memory() -> None:
    found = one_node([], (1, 10.0, -7))
    assert (found.kind, found.what) == (
        Kind.SHARED_MEMORY_FULL,
        "rank 1 was killed by SIGBUS: shared memory full",
    )


# Several nodes


def test_a_rank_is_named_with_its_host() -> None:
    found = two_nodes([note(0, 10.1)], end(0, (0, 10.2, 1), (1, 10.4, -15)), end(1, (2, 14.0, -9), (3, 15.0, -15)))
    # its agent saw it four seconds by its own clock after the peer had failed: clocks differ, and the peer is a victim
    assert (found.what, found.rank, found.node, found.host) == (f"rank 2 on beta {KILLED}", 2, 1, "beta")
    assert found.victims == (0,)


def test_a_node_that_was_lost() -> None:
    failures = [note(0, 10.1), note(1, 10.1)]
    for more in ({}, {"word": word("NODE_FAIL")}):
        found = two_nodes(failures, end(0, (0, 10.2, 1), (1, 10.2, 1)), **more)
        assert (found.kind, found.node, found.host, found.rank) == (Kind.NODE_LOST, 1, "beta", None)
        assert found.what == "node 1 (beta) was lost" + (" (NODE_FAIL)" if more else "")
        assert found.victims == (0, 1)
    assert "cluster.exclude=[beta]" in found.advice[1]


def test_a_rank_that_raised_outweighs_a_node_that_left_no_end() -> None:
    found = two_nodes([note(3, 12.0, "boom", "ValueError", host="beta"), note(0, 10.1)], end(0, (0, 10.2, 1)))
    assert found.what == "rank 3 on beta failed with ValueError: boom"


def test_nodes_that_did_not_come_are_named() -> None:
    text = (SAMPLES / "rendezvous-head.txt").read_text()
    found = two_nodes([], end(0), present=frozenset({0}), agent_texts={0: text})
    assert (found.kind, found.what) == (
        Kind.RENDEZVOUS,
        "the nodes did not all meet: node 1 (beta) did not come",
    )
    assert found.log_tail[-1].endswith("RendezvousTimeoutError")


def test_a_node_that_cannot_reach_the_head_is_named() -> None:
    texts = {0: (SAMPLES / "rendezvous-head.txt").read_text(), 1: (SAMPLES / "rendezvous-client.txt").read_text()}
    found = two_nodes([], end(0), end(1), agent_texts=texts)
    assert found.what == "the nodes did not all meet: node 1 (beta) could not reach node 0 (alpha)"


def test_a_node_without_the_packages() -> None:
    texts = {0: "", 1: (SAMPLES / "import-error-module.txt").read_text()}
    found = two_nodes([], end(0), end(1), agent_texts=texts)
    assert (found.kind, found.what) == (Kind.IMPORT_ERROR, "no rank was started on node 1 (beta): import error")


def test_a_node_on_which_srun_could_start_nothing() -> None:
    text = (
        "fitlaunch: job 17, attempt 1 on node[1-2]\n"
        "srun: error: beta: task 1: Exited with exit code 2\n"
        "slurmstepd-beta: error: execve(): /venv/bin/python: No such file or directory\n"
    )
    found = two_nodes([], end(0, (0, 9.0, -15)), present=frozenset({0}), job_text=text, word=word("FAILED"))
    assert (found.kind, found.node, found.host) == (Kind.FILE_MISSING, 1, "beta")
    assert found.what.startswith("no rank was started on node 1 (beta): slurmstepd-beta: error: execve()")
    nowhere = two_nodes([], present=frozenset(), job_text=text, word=word("FAILED", "NonZeroExitCode"))
    assert (nowhere.kind, nowhere.node, nowhere.what) == (Kind.FILE_MISSING, 1, found.what)
    silent = two_nodes([], end(0, (0, 9.0, -15)), present=frozenset({0}), word=word("FAILED"))
    assert silent.what == "the nodes did not all meet: node 1 (beta) did not come"


def test_a_node_that_could_not_start_its_ranks() -> None:
    why = "on beta the data file /data/rows.json is missing: No such file or directory"
    unstarted = dataclasses.replace(end(1), started_at_s=5.0, ended_at_s=5.0, exit_code=None, ended_by=why)
    found = two_nodes([], end(0, (0, 9.0, -15)), unstarted)
    assert (found.kind, found.what) == (Kind.FILE_MISSING, f"no rank was started on node 1 (beta): {why}")


def test_a_launcher_knows_why_a_host_was_lost() -> None:
    lost = dataclasses.replace(end(1), exit_code=None, ended_by="no answer for 40 s", is_lost=True)
    found = two_nodes([note(0, 10.1)], end(0, (0, 10.2, 1)), lost)
    assert found.what == "node 1 (beta) was lost: no answer for 40 s"


def test_srun_names_the_node_that_ran_out_of_memory() -> None:
    text = "slurmstepd: error: x\nsrun: error: beta: task 1: Out Of Memory"
    killed = two_nodes([], end(0, (0, 9.0, -15)), end(1, (2, 9.0, -9)), job_text=text)
    assert (killed.kind, killed.rank) == (Kind.KERNEL_OUT_OF_MEMORY, 2)
    elsewhere = two_nodes([], end(0, (0, 9.0, -9)), end(1, (2, 9.0, -15)), job_text=text)
    assert (elsewhere.kind, elsewhere.rank) == (Kind.SIGNAL, 0)


# Collectives that time out


def test_the_rank_that_did_not_come_is_named() -> None:
    found = one_node([note(0, 10.0, WAITED)], (0, 10.2, 1), (1, 10.4, -15))
    assert (found.kind, found.what) == (
        Kind.COLLECTIVE_TIMEOUT,
        "rank 0 waited in vain in a collective: rank 1 did not come to it",
    )


def test_the_rank_that_put_fewer_collectives_into_its_queue_is_behind() -> None:
    line = (SAMPLES / "collective-timed-out-nccl.txt").read_text().splitlines()
    behind = [text.replace("last enqueued NCCL work: 7755", "last enqueued NCCL work: 7752") for text in line]
    tails = {0: tuple(line), 1: tuple(line), 2: tuple(behind), 3: tuple(line)}
    found = two_nodes([], end(0, (0, 10.0, -6), (1, 10.0, -6)), end(1, (2, 10.0, -6), (3, 10.0, -6)), rank_tails=tails)
    assert found.what == "rank 0 on alpha waited in vain in a collective: rank 2 did not come to it"


def test_where_most_are_silent_nobody_is_named() -> None:
    found = two_nodes([note(0, 10.0, WAITED)], end(0, (0, 10.2, 1)), end(1))
    assert found.what == "rank 0 on alpha waited in vain in a collective"


# The scheduler


@pytest.mark.parametrize(
    ("state", "kind"),
    [("TIMEOUT", Kind.TIME_LIMIT), ("PREEMPTED", Kind.PREEMPTED), ("CANCELLED", Kind.CANCELLED)],
)
def test_the_scheduler_killed_the_ranks(state: str, kind: Kind) -> None:
    found = two_nodes([note(0, 10.1)], end(0, (1, 10.0, -9)), end(1, (2, 10.0, -9)), word=word(state))
    assert (found.kind, found.rank) == (kind, None)
    assert found.because[-1] == f"the scheduler says of job 17: {state}"
    raised = two_nodes([note(0, 9.0, "boom", "ValueError")], end(0), end(1), word=word(state))
    assert raised.kind is Kind.EXCEPTION


def test_the_schedulers_reason_where_no_rank_was_started() -> None:
    found = two_nodes([], word=word("FAILED", "NonZeroExitCode"), present=frozenset())
    assert (found.kind, found.what) == (
        Kind.SCHEDULER,
        "no rank was started: FAILED (NonZeroExitCode)",
    )


# The run folder


def test_a_diagnosis_is_kept_with_what_the_scheduler_said(tmp_path: Path) -> None:
    job = spec(gpus_per_node=4)
    run_folder(tmp_path / "run", job, status=Status.FAILED)
    run = RunFolder(tmp_path / "run")
    write_record(run.failed(1, 2), note(2, 10.0, RAN_OUT, "OutOfMemoryError", phase="loss", step=13))
    write_record(run.node_end(1, 0), end(0, (2, 10.1, 1), (3, 10.4, -15)))
    found = diagnose_attempt(run, 1, word=word("FAILED"))
    assert (found.rank, found.host, found.kind) == (2, "alpha", Kind.CUDA_OUT_OF_MEMORY)
    assert found.memory is not None
    assert found.memory.planned_phase_bytes == 13 * (1 << 30) + (256 << 20) + (300 << 10)
    assert read_diagnosis(run, 1) == found
    assert diagnose_attempt(run, 1) == found  # the scheduler has forgotten the job since
    run.diagnosis(1).write_text("{")
    assert diagnose_attempt(run, 1).scheduler is None
