"""Slurm's answers, as 22.05 gave them: what is there, what has ended, what is not there, and what is no answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.scheduler.client import SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.details import (
    Partition,
    hostnames,
    max_array_size,
    parse_config,
    parse_record,
    parse_time_min,
    partitions,
)
from launcher.scheduler.environment import job_environment
from launcher.scheduler.jobs import SQUEUE, Job, by_id, my_jobs, named, parse_squeue
from launcher.targets.slurm import parse_job_id

RECORDED = Path(__file__).parents[1] / "fixtures" / "slurm-22.05"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


JOBS = parse_squeue(recorded("squeue"))


def test_every_job_is_read_with_its_name_whatever_is_in_it() -> None:
    assert [job.job_id for job in JOBS] == ["1", "2", "3", "4_2", "4_3", "5", "6", "7", "8", "4_0", "4_1", "11"]
    assert by_id(JOBS)["2"].name == "odd\tname|x"
    assert by_id(JOBS)["11"] == Job(
        job_id="11", name="fitlaunch-a", state="RUNNING", reason="None", nodes="node[1-2]", start="2026-11-22T10:07:19"
    )


def test_what_waits_what_lives_and_what_is_over() -> None:
    assert [job.job_id for job in JOBS if job.is_waiting] == ["4_2", "4_3", "5", "6", "7", "8"]
    assert [job.job_id for job in JOBS if job.is_live] == ["4_0", "4_1", "11"]
    assert [job.job_id for job in JOBS if job.is_over] == ["1", "2", "3"]


def test_a_job_beyond_the_limits_of_its_partition_waits_for_ever() -> None:
    assert {job.name: job.reason for job in JOBS if job.is_stuck} == {
        "fitlaunch-big": "PartitionNodeLimit",
        "fitlaunch-long": "PartitionTimeLimit",
        "fitlaunch-held": "JobHeldUser",
    }


def test_of_jobs_of_one_name_the_living_ones_come_first() -> None:
    assert [job.job_id for job in named(JOBS, "fitlaunch-a")] == ["11", "1"]
    assert named(JOBS, "fitlaunch") == ()


def test_one_call_asks_for_all_jobs() -> None:
    calls: list[Sequence[str]] = []

    def run(argv: Sequence[str]) -> str:
        calls.append(argv)
        return recorded("squeue")

    assert my_jobs(run) == JOBS
    assert calls == [SQUEUE]
    assert not [word for word in SQUEUE if word.startswith(("--jobs", "-j"))]  # one unknown id spoils the answer


def test_no_jobs_at_all() -> None:
    assert parse_squeue("") == ()


# --- details


def test_partitions_with_their_limits() -> None:
    found = {
        partition.name: (partition, default) for partition, default in partitions(lambda _: recorded("partitions"))
    }
    assert [name for name, (_, default) in found.items() if default] == ["main"]
    assert found["limited"][0] == Partition(
        name="limited",
        state="DRAIN",
        num_nodes=1,
        max_nodes=1,
        max_time_min=2 * 1440 + 12 * 60 + 30,
        accounts=("lab1", "lab2"),
        denied_accounts=(),
        qos=("long",),
    )
    assert (found["main"][0].most_nodes, found["main"][0].max_time_min, found["main"][0].accounts) == (2, 60, ())


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", None),
        ("01:00:00", 60),
        ("00:01:00", 1),
        ("2-12:30:00", 3630),
        ("7-00:00:00", 10080),
        ("30:00", 30),
    ],
)
def test_times(text: str, minutes: int | None) -> None:
    assert parse_time_min(text) == minutes


def test_the_size_of_arrays() -> None:
    assert parse_config(recorded("config"))["MaxArraySize"] == "1001"
    assert max_array_size(lambda _: recorded("config")) == 1001
    assert max_array_size(lambda _: "") is None


def test_records() -> None:
    record = parse_record(recorded("job"))
    wanted = ("JobId", "JobName", "JobState", "Reason", "ExitCode", "Restarts", "BatchHost", "NodeList", "ReqB:S:C:T")
    assert {key: record[key] for key in wanted} == {
        "JobId": "1",
        "JobName": "fitlaunch-a",
        "JobState": "CANCELLED",
        "Reason": "None",
        "ExitCode": "0:15",
        "Restarts": "0",
        "BatchHost": "node1",
        "NodeList": "node[1-2]",
        "ReqB:S:C:T": "0:0:*:*",
    }


def test_names_of_nodes() -> None:
    answers = {("scontrol", "show", "hostnames", "node[1-2]"): "node1\nnode2\n"}
    assert hostnames("node[1-2]", lambda argv: answers[tuple(argv)]) == ("node1", "node2")


# --- answers and silence

SILENT = [
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "slurm_load_jobs error: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "allocation failure: Unable to contact slurm controller (connect failure)",
    "squeue: error: _establish_config_source: failed to fetch config",
]
REFUSALS = [
    "sbatch: error: invalid partition specified: nosuch\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified",
    "allocation failure: Requested node configuration is not available",
    "slurm_load_jobs error: Invalid job id specified",
]


def command(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.mark.parametrize("said", SILENT)
def test_no_answer(said: str) -> None:
    with pytest.raises(SchedulerSilent):
        ask(command(f"import sys; sys.stderr.write({said!r}); sys.exit(1)"))


@pytest.mark.parametrize("said", REFUSALS)
def test_a_refusal_has_slurms_own_words(said: str) -> None:
    with pytest.raises(SchedulerRefused) as caught:
        ask(command(f"import sys; sys.stderr.write({said!r}); sys.exit(1)"))
    assert str(caught.value) == said.replace("\n", " ")


def test_a_missing_command_is_no_answer() -> None:
    with pytest.raises(SchedulerSilent, match="is this a login node"):
        ask(("no-such-command-of-slurm",))


def test_a_command_that_hangs_is_ended_with_all_that_it_started() -> None:
    marker = f"sleep-{os.getpid()}"
    began = time.monotonic()
    with pytest.raises(SchedulerSilent, match="no answer from the controller within 1 s"):
        ask(("bash", "-c", f"sleep 300 & exec -a {marker} sleep 300"), timeout_s=1)
    assert time.monotonic() - began < 10
    assert marker not in subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, timeout=20).stdout


def test_a_command_is_in_a_session_of_its_own() -> None:
    assert int(ask(command("import os; print(os.getsid(0))"))) != os.getsid(0)


def test_stderr_is_the_answer_where_there_is_no_other() -> None:
    text = ask(command("import sys; sys.stderr.write('sbatch: Job 11 to start at ...')"))
    assert text == "sbatch: Job 11 to start at ..."


@pytest.mark.parametrize(("text", "job_id"), [("17\n", "17"), ("17;cluster\n", "17"), ("a site's motto\n17\n", "17")])
def test_job_ids(text: str, job_id: str) -> None:
    assert parse_job_id(text) == job_id


# --- the environment of a job


def test_a_job_takes_along_what_is_listed_and_what_is_named() -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/home/ada",
        "LC_ALL": "C.UTF-8",
        "BASH_FUNC_module%%": "() { :; }",
        "WANDB_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "SBATCH_PARTITION": "other",
        "SLURM_JOB_ID": "1",
        "https_proxy": "http://ada:secret@proxy",
        "MY_FLAG": "a,b $(id)",
        "OTHER": "1",
    }
    assert job_environment(environ, ("MY_FLAG", "NOT_SET")) == {
        "PATH": "/bin",
        "HOME": "/home/ada",
        "LC_ALL": "C.UTF-8",
        "BASH_FUNC_module%%": "() { :; }",
        "MY_FLAG": "a,b $(id)",
    }
