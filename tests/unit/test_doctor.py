"""A check-up of nodes: what they print is read back, and judged; and its screen."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.operate.doctor.judge import Wanted, cut_off, findings, unfit_nodes
from launcher.operate.doctor.output import read_output, say
from launcher.operate.doctor.screen import exclude_words, show_checkup
from launcher.operate.doctor.types import AllReduced, Answers, Checkup, NodeReport, RanksEnd, Reached
from launcher.report.console import make_console
from launcher.units import GIB, MIB
from tests.report_fixtures import CPU, RTX4090

Golden = Callable[[str, str], None]
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}


def report(node: int, **other: Any) -> NodeReport:
    known: dict[str, Any] = {
        "node_rank": node, "host": f"node{node + 1}", "versions": VERSIONS, "code_hash": "abc", "sees_folder": True,
        "can_write": True, "missing_paths": (), "address": f"10.0.0.{node + 1}", "interface": "ib0",
        "network_problem": "", "port": 40_000, "ram_available_bytes": 64 * GIB, "disk_free_bytes": 900 * GIB,
        "shm_total_bytes": 32 * GIB, "shm_free_bytes": 32 * GIB, "num_cores": 16, "num_gpus": 8,
        "gpu_names": ("RTX 4090",) * 8, "gpu_bytes": 24 * GIB, "gpu_problem": None,
    }  # fmt: skip
    return NodeReport(**{**known, **other})


WANTED = Wanted(
    num_nodes=3, ranks_per_node=8, device=RTX4090, versions=VERSIONS, code_hashes=frozenset({"abc"}),
    ram_bytes=32 * GIB, disk_bytes=100 * GIB,
)  # fmt: skip


def answers(*reports: NodeReport, unreachable: dict[int, tuple[int, ...]] | None = None, **more: Any) -> Answers:
    missed = unreachable or {}
    return Answers(
        hosts=("node1", "node2", "node3"),
        reports={each.node_rank: each for each in reports},
        reached={
            each.node_rank: Reached(node_rank=each.node_rank, unreachable=missed.get(each.node_rank, ()))
            for each in reports
        },
        **more,
    )


def wrong(told: Answers, wanted: Wanted = WANTED) -> list[tuple[int | None, str]]:
    return [
        (finding.node, finding.rule) for finding in findings(told, dataclasses.replace(wanted, with_all_reduce=False))
    ]


ALL = (report(0), report(1), report(2))


def test_nothing_is_wrong() -> None:
    assert wrong(answers(*ALL)) == []


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        ({"sees_folder": False, "can_write": False}, "does not see the folder of the runs"),
        ({"can_write": False}, "cannot write into the folder of the runs"),
        (
            {"versions": VERSIONS | {"torch": "2.12.0", "peft": "0.21"}},
            "has other versions than this host: torch 2.12.0 (here 2.13.0), peft 0.21 (here missing)",
        ),
        ({"code_hash": "def"}, "runs other code of fitlaunch than this host"),
        ({"missing_paths": ("/data/a.json",)}, "has no /data/a.json"),
        ({"address": "", "network_problem": "ib0 is down"}, "ib0 is down"),
        ({"address": "127.0.1.1"}, "has no address but 127.0.1.1"),
        ({"ram_available_bytes": GIB}, "has 1.00 GiB of RAM free, and the ranks need 32.00 GiB"),
        (
            {"disk_free_bytes": GIB},
            "sees 1.00 GiB free in the folder of the runs, and the run may write 100.00 GiB",
        ),
        # 8 ranks x 2 neighbours x 9,637,888 bytes
        (
            {"shm_free_bytes": 64 * MIB, "shm_total_bytes": 64 * MIB},
            "has 64.0 MiB of 64.0 MiB free in /dev/shm, and the ranks need 147.1 MiB",
        ),
        (
            {"num_gpus": 7, "gpu_problem": "GPU is lost"},
            "has 7 GPUs, and the job takes 8 (GPU is lost)",
        ),
        (
            {"gpu_bytes": 16 * GIB, "gpu_names": ("RTX 4080",) * 8},
            "has GPUs of 16.00 GiB (RTX 4080), and the plan is for rtx4090 with 24.00 GiB",
        ),
    ],
)
def test_a_node_that_is_not_fit_is_named(other: dict[str, Any], rule: str) -> None:
    assert wrong(answers(report(0), report(1, **other), report(2))) == [(1, rule)]


def test_cpu_ranks_need_no_gpus_and_little_shared_memory() -> None:
    told = answers(*(report(node, num_gpus=0, gpu_bytes=None, shm_free_bytes=16 * MIB) for node in range(3)))
    assert wrong(told, dataclasses.replace(WANTED, device=CPU)) == []


def test_a_node_that_says_nothing_is_named_with_what_was_said_of_it() -> None:
    told = answers(report(0), report(2), said={1: ("execve(): /venv/bin/python: No such file or directory", "")})
    (finding,) = findings(told, WANTED)
    assert finding.node == 1
    assert finding.rule == "said nothing of itself: execve(): /venv/bin/python: No such file or directory"
    assert finding.way_out.startswith("Python is not there on that node")


# Who reaches whom


@pytest.mark.parametrize(
    ("unreachable", "expected"),
    [
        ({}, set()),
        # nobody reaches node 1, and it reaches nobody
        ({0: (1,), 2: (1,), 1: (0, 2)}, {1}),
        # it is reached, and reaches nobody: a firewall for what goes out
        ({1: (0, 2)}, {1}),
        # of two that do not reach each other nobody can tell
        ({0: (1,), 1: (0,)}, {0, 1}),
    ],
)
def test_who_is_cut_off(unreachable: dict[int, tuple[int, ...]], expected: set[int]) -> None:
    told = answers(*ALL, unreachable=unreachable)
    assert cut_off(told.reports, told.reached) == expected
    assert unfit_nodes(told.reports, told.reached) == expected


def test_one_link_of_many_is_no_verdict_over_a_node() -> None:
    reports = {node: report(node) for node in range(8)}
    reached = {node: Reached(node_rank=node, unreachable=(5,) if node == 2 else ()) for node in range(8)}
    assert cut_off(reports, reached) == frozenset()


# The all-reduce


def reduced(*ranks: int) -> dict[int, AllReduced]:
    return {
        rank: AllReduced(
            rank=rank, host=f"node{rank + 1}", backend="gloo", world_size=3, size_bytes=16 * MIB, seconds=0.5
        )
        for rank in ranks
    }


def ended(**tails: str) -> dict[int, RanksEnd]:
    return {
        number: RanksEnd(node_rank=number, exit_code=1 if tail else 0, tail=(tail,) if tail else ())
        for number, tail in enumerate(tails.values())
    }


ONE_RANK = dataclasses.replace(WANTED, ranks_per_node=1)
PEER = "RuntimeError: gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:6052"


def test_all_took_part() -> None:
    told = answers(*ALL, ends=ended(a="", b="", c=""), reduced=reduced(0, 1, 2))
    assert findings(told, ONE_RANK) == ()


def test_the_node_that_failed_by_itself_is_named_and_its_victims_are_not() -> None:
    cause = "RuntimeError: Gloo connectFullMesh failed with Caught signal 11"
    told = answers(*ALL, ends=ended(a=PEER, b=cause, c=PEER))
    assert [(each.node, each.rule) for each in findings(told, ONE_RANK)] == [
        (1, f"failed in the all-reduce: {cause}"),
    ]


def test_where_all_fail_nobody_is_named() -> None:
    told = answers(*ALL, ends=ended(a=PEER, b=PEER, c=PEER))
    (finding,) = findings(told, ONE_RANK)
    assert finding.node is None
    assert finding.rule == f"every node reaches every other, and still: failed in the all-reduce: {PEER}"


def test_a_node_that_did_not_come() -> None:
    told = answers(*ALL, ends=ended(a="", b=""), reduced=reduced(0, 1))
    assert [(each.node, each.rule) for each in findings(told, ONE_RANK)] == [(2, "did not come to the all-reduce")]


# Output


def test_what_nodes_say_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    records = (report(1), Reached(node_rank=1, unreachable=(0,)), RanksEnd(node_rank=1, exit_code=None, tail=("a",)))
    for record in records:
        say(record)
    say(reduced(3)[3])
    said = capsys.readouterr().out.splitlines()
    text = "\n".join(
        (
            "fitlaunch-doctor nodes node1 node2 ",
            *(f" 1: {line}" for line in said),
            "0: slurmstepd: error: execve(): /venv/bin/python: No such file or directory",
            "srun: error: node1: tasks 0,2-3: Exited with exit code 2",
            "srun: error: Task launch for StepId=9.0 failed on node node2: Job credential expired",
            "1: fitlaunch-doctor report {cut of",
            "",
            "a line of the site's own",
        )
    )
    assert read_output(text) == Answers(
        hosts=("node1", "node2"),
        reports={1: records[0]},
        reached={1: records[1]},
        ends={1: records[2]},
        reduced=reduced(3),
        said={
            0: ("slurmstepd: error: execve(): /venv/bin/python: No such file or directory", "Exited with exit code 2"),
            1: ("Job credential expired",),
            2: ("Exited with exit code 2",),
            3: ("Exited with exit code 2",),
        },
        rest=("a line of the site's own",),
    )


# Screens


def shown(checkup: Checkup, folder: Path | None = None) -> str:
    out = io.StringIO()
    show_checkup(checkup, folder, make_console(out))
    return out.getvalue()


def test_screen_of_a_check_up(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    full = {"shm_free_bytes": 0, "shm_total_bytes": 64 * MIB, "num_gpus": 7}
    told = answers(report(0), report(2, **full), said={1: ("No module named launcher",)}, reduced=reduced(0, 2))
    checkup = Checkup(kind="slurm", answers=told, findings=findings(told, WANTED))
    golden("report/doctor-wrong.txt", shown(checkup, tmp_path / "runs" / "doctor" / "x"))
    assert exclude_words(checkup) == ("--exclude=node2,node3", "cluster.exclude=[node2,node3]")
    assert exclude_words(dataclasses.replace(checkup, kind="hosts")) == ("take node2, node3 out of the hostfile",)
    well = Checkup(kind="hosts", answers=answers(*ALL, reduced=reduced(0, 1, 2)), findings=())
    golden("report/doctor-well.txt", shown(well))


def test_nobody_is_excluded_where_all_are_at_fault() -> None:
    told = answers(*(report(node, code_hash="x") for node in range(3)))
    assert exclude_words(Checkup(kind="slurm", answers=told, findings=findings(told, WANTED))) == ()
